"""Reporting of a run's progress: console, HTTP, metrics, history, trackers."""
