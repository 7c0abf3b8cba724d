"""Checkpoints and exported models: saved, published, verified, pruned."""
