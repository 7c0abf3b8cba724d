"""Benchmarks: a matrix of training runs, measured side by side."""
