"""The models that transformers tests itself with, each in its own tiny configuration.

They are in its repository and in no package: ``--tests DIR`` is a checkout, the folder in which its ``tests`` lie.
Of each of its files the first class of models is taken, which is the base model, with the inputs made for it there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.zoo import Case, Inputs

FOLDER = "GRAPHAUG_TRANSFORMERS_TESTS"
"""The environment's name for the checkout, by which the workers know of it."""


class TinyCase(Case):
    """One whose inputs of another batch size are made by the tests too, as a sample is not always one entry along 0."""

    def build(self) -> tuple[nn.Module, Inputs, Inputs]:
        model, inputs, other = self.make()
        return model, inputs, other


def cases() -> list[Case]:
    """One for every file of tests that names the classes of its models; none without a checkout."""
    if FOLDER not in os.environ:
        return []
    files = sorted(Path(os.environ[FOLDER]).glob("tests/models/*/test_modeling_*.py"))
    return [
        TinyCase(f"tiny:{file.stem.removeprefix('test_modeling_')}", "tiny", functools.partial(_make, file))
        for file in files
        if "all_model_classes" in file.read_text()
    ]


def _make(file: Path) -> tuple[nn.Module, Inputs, Inputs]:
    test = _test_of(file)
    test.setUp()
    cls = test.all_model_classes[0]
    config, inputs = _inputs(test, cls, 2)
    _, other = _inputs(test, cls, 3)
    model = cls(config)
    model.eval()
    with contextlib.suppress(Exception):
        model(**other)
        return model, inputs, other
    model(**inputs)
    return model, inputs, inputs  # what belongs to a batch size is in the configuration


def _inputs(test: Any, cls: type, batch: int) -> tuple[Any, Inputs]:
    """The tests' own configuration and inputs for so many samples."""
    for tester in (test.model_tester, *vars(test.model_tester).values()):
        if isinstance(getattr(tester, "batch_size", None), int):
            tester.batch_size = batch
    config, inputs = test.model_tester.prepare_config_and_inputs_for_common()
    return config, dict(test._prepare_for_class(inputs, cls))


def _test_of(file: Path) -> Any:
    """The first test case of a file that has models."""
    root = str(file.parents[3])
    if sys.path[0] != root:
        sys.path[:0] = [root, f"{root}/utils"]
    module = importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))
    for found in vars(module).values():
        own = isinstance(found, type) and found.__module__ == module.__name__ and hasattr(found, "setUp")
        if own and getattr(found, "all_model_classes", ()):
            return found("setUp")
    raise LookupError("no test case of this file has models here")
