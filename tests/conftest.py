"""Settings of all tests."""

import gc
import logging
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time: on a busy machine drawing and running an example may take long. What a change is checked by
# in CI is the same each time; everywhere else the examples are new ones.
settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("untimed")

# Python looks for cycles whenever there are 700 objects more, and at each hundredth time among all objects. With the
# libraries that tests load, these are so many that it took a fifth of the time of every rewrite.
gc.set_threshold(20_000, 20, 10)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Of a test marked ``few(n)``, n of its cases run in `make test`, evenly spread; all others are marked long."""
    cases = {}
    for item in items:
        if item.get_closest_marker("few"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for family in cases.values():
        few = family[0].get_closest_marker("few").args[0]
        kept = {round(i * (len(family) - 1) / max(few - 1, 1)) for i in range(few)}
        for i, item in enumerate(family):
            if i not in kept:
                item.add_marker("long")


@pytest.fixture(scope="module", autouse=True)
def graph_in_eval(request):
    """In the rooms that test graphs those of eval mode run as if compiled: else it is the original that runs there."""
    with pytest.MonkeyPatch.context() as patch:
        if {"capture", "proof", "properties", "sparse"} & set(
            request.path.parts
        ) or "architectures" in request.path.name:
            patch.setattr("graphaug.surgery.rewritten.forward.runs_graph_in_eval", lambda: True)
        yield


@pytest.fixture
def graphaug(capsys, monkeypatch):
    """The command line, in this process: ``graphaug("sites", ...)`` gives exit code, output and messages."""

    def call(*arguments):
        from graphaug import cli

        monkeypatch.setattr(sys, "argv", ["graphaug", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture(scope="session", autouse=True)
def data_of_the_tests(tmp_path_factory):
    """Neither what the user downloaded is seen nor are the tests' images in the cache, in their processes neither."""
    os.environ["GRAPHAUG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["GRAPHAUG_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session", autouse=True)
def no_trace_of_guards():
    """pytest listens to each logger that does not hand on, as this one of torch does once it is imported.

    As long as somebody listens, torch writes down the stack of every guard and every graph that it compiles: up to a
    twentieth of the tests' time.
    """
    trace = logging.getLogger("torch.__trace")
    trace.propagate = True
    trace.handlers.clear()
