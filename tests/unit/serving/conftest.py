"""Fixtures of these tests: exported models and a server of one."""

from tests.support.serving.fixtures import client as client
from tests.support.serving.fixtures import run_dir as run_dir
from tests.support.serving.fixtures import stories_dir as stories_dir
