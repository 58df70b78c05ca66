"""The proof of drift: what each step from the trained network to the deployed one changed, and the limits it keeps."""
