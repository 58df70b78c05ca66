"""What runs a network: one small interface, one module per runtime."""
