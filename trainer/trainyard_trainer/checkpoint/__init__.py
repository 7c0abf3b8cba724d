"""Checkpoints and exported models: saving, publishing, verification and retention."""
