"""What lies on disk: files replaced as a whole, and checkpoints that can be verified."""
