"""Scaling studies: a matrix of training runs, measured side by side."""
