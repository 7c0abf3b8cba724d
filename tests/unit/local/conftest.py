"""Fixtures of these tests: a home of its own for each."""

from tests.support.local.box import box as box
