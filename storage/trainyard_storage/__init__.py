"""Files on disk: atomic writes, and checkpoints that are verified byte by byte."""
