"""Fixtures of these tests: a run with an exported model."""

from tests.support.serving.fixtures import run_dir as run_dir
