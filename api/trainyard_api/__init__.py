"""Models and names that all parts share: pydantic only, no torch, no kubernetes, no web."""

__version__ = "0.1.0"
