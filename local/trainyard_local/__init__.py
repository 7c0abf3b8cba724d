"""Runs on this machine: torchrun as local processes, driven by the same `reconcile` as pods."""
