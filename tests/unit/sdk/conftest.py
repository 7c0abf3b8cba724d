"""Ranks of scripts are forked from a process that has torch loaded."""

from tests.support.trainer.fixtures import rank_server as rank_server
