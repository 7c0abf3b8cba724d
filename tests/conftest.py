"""What holds for all tests: a busy machine fails no property test, system tests are slow ones."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Both limits are wall-clock time: they judge the machine, not the code. What hangs is stopped by
# the runner.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

SYSTEM = Path(__file__).with_name("system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make system` selects by the marker, as slow tests of a package stay beside its others."""
    for item in items:
        if item.path.is_relative_to(SYSTEM):
            item.add_marker(pytest.mark.slow)
