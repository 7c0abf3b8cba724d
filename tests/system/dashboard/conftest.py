"""Fixtures of these tests: a browser, and a model's server for the demo."""

from tests.support.serving.browser import chromium as chromium
from tests.support.serving.browser import page as page
from tests.support.serving.fixtures import client as client
from tests.support.serving.fixtures import run_dir as run_dir
