"""Samples: where they come from, which ones form a batch, and how they are loaded."""
