"""The whole path once, on the bundled picture, by the same commands a user types."""
