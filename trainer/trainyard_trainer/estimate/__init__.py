"""Estimates the memory of a training step, by running it with fake tensors."""
