"""Trainyard's trainer: the program of a run's processes, started by torchrun or alone."""
