"""Settings of all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time: on a busy machine drawing and running an example may take long.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Decoded images of the tests' folders stay out of the user's cache; processes that tests start inherit it."""
    os.environ["GRAPHAUG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
