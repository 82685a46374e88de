"""The models that transformers tests itself with, each in its own tiny configuration.

They are in its repository and in no package: ``--tests DIR`` is a checkout, the folder in which its ``tests`` lie.
Of each of its files the first class of models is taken, which is the base model, with the inputs made for it there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
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
        if not file.stem.startswith(("test_modeling_tf_", "test_modeling_flax_"))
    ]


def result(records: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """What is kept of a run: how many are ok as they are, and once what their refusal says was done; and each model."""
    built = [r for r in records if r["status"] != "cannot be built here"]
    totals = {
        "can be built": len(built),
        "ok as they are": sum(r["status"] == "ok" and not r.get("followed") for r in built),
        "ok once the refusal is followed": sum(
            r["status"] == "ok" and bool(r.get("followed")) for r in built
        ),
        "failed": sum(r["status"] == "failed" for r in built),
        "cannot be built here": len(records) - len(built),
    }
    models = [
        {k: r[k] for k in ("name", "status", "reason", "before", "followed", "sites") if r.get(k)}
        for r in records
    ]
    text = json.dumps({"versions": versions, "totals": totals, "models": models}, indent=1) + "\n"
    return text.replace(f"{os.environ[FOLDER]}/", "")


def follow(advice: str, model: nn.Module, inputs: Inputs, other: Inputs) -> str:
    """Do what a refusal says; what that was, or "" if it names no argument and no setting, or they are so already."""
    changed = False
    if found := re.search(r"Pass (\w+)=False in example_inputs", advice):
        changed = inputs.get(found[1]) is not False
        inputs[found[1]] = other[found[1]] = False
    elif found := re.search(r"model[\w.]*\.config\.(\w+) = (False|0\.0)", advice):
        wanted = False if found[2] == "False" else 0.0
        for module in model.modules():
            for holder in (module, getattr(module, "config", None)):  # blocks have copies of LayerDrop's rate
                if isinstance(held := getattr(holder, found[1], None), (bool, float)) and held != wanted:
                    setattr(holder, found[1], wanted)
                    changed = True
    return found[0] if found and changed else ""


def _make(file: Path) -> tuple[nn.Module, Inputs, Inputs]:
    test = _test_of(file)
    cls = test.all_model_classes[0]
    config, inputs = _inputs(test, cls, 2)
    _, other = _inputs(test, cls, 3)
    model = cls(config)
    model.eval()
    with torch.no_grad(), contextlib.suppress(Exception):
        model(**other)
        return model, inputs, other
    with torch.no_grad():
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
        if own and hasattr(found, "all_model_classes"):
            test = found("setUp")
            test.setUp()  # where a tester names the classes
            if (
                test.all_model_classes
                and hasattr(test, "model_tester")
                and hasattr(test, "_prepare_for_class")
            ):
                return test
    raise LookupError("no test case of this file has models here")
