"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# No test asserts a time: on a busy machine drawing and running an example may take long.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
