"""Columns of `kubectl get` and `trainyard get`. Imports nothing, so that it loads quickly."""

# Name, type, JSON path, priority (1: only with `-o wide`).
COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Loss", "number", ".status.loss", 0),
    ("Throughput", "string", ".status.throughput", 0),
    ("ETA", "string", ".status.eta", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Checkpoint", "integer", ".status.lastCheckpoint.step", 0),
    ("Saved", "date", ".status.lastCheckpoint.time", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Nodes", "integer", ".status.nodes", 1),
    ("Reason", "string", ".status.reason", 1),
    ("Message", "string", ".status.message", 1),
)

STUDY_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Headline", "string", ".status.headline", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", ".status.reason", 1),
    ("Message", "string", ".status.message", 1),
)
