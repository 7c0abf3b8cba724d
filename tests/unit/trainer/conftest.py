"""Fixtures of these tests: real trainer processes and jobs for them."""

from tests.support.trainer.fixtures import corpus as corpus
from tests.support.trainer.fixtures import launch as launch
from tests.support.trainer.fixtures import make_job as make_job
from tests.support.trainer.fixtures import rank_server as rank_server
from tests.support.trainer.fixtures import train as train
from tests.support.trainer.fixtures import unused_port as unused_port
