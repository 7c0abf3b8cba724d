"""Settings of Hypothesis for all tests: a busy machine must not fail a property test."""

from hypothesis import HealthCheck, settings

# Both limits are wall-clock time: they judge the machine, not the code. What hangs is stopped by
# the runner.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
