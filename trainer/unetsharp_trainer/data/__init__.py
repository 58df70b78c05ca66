"""Data, without torch: PanNuke as released, the prepared cache, augmentation, checks and the contact sheet."""
