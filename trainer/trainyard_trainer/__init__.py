"""Trainyard's trainer: what runs inside a run's processes, under torchrun or alone."""
