"""Fixtures of these tests: a browser, exported models and a server of one."""

from tests.support.serving.browser import chromium as chromium
from tests.support.serving.browser import page as page
from tests.support.serving.fixtures import client as client
from tests.support.serving.fixtures import run_dir as run_dir
from tests.support.serving.fixtures import stories_dir as stories_dir
