"""Fixtures of these tests: a browser."""

from tests.support.serving.browser import chromium as chromium
from tests.support.serving.browser import page as page
