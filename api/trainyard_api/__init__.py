"""The words all parts of Trainyard share: pydantic models only, no torch, no kubernetes, no web."""

__version__ = "0.1.0"
