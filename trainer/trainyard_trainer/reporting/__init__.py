"""Progress of a run: console, HTTP, metrics, history, trackers."""
