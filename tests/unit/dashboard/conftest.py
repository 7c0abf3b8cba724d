"""Fixtures of these tests: a model's server, for the demo."""

from tests.support.serving.fixtures import client as client
from tests.support.serving.fixtures import run_dir as run_dir
