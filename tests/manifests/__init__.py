"""Manifests that more than one test suite uses."""
