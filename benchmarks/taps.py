"""Whether `graphaug.tap` reads what forward hooks see: the models of the coverage table, each at three depths at once.

    python -m benchmarks.taps [--match TEXT] [--minutes 60] [--backwards]

Every model is built as in `benchmarks.coverage` and called once with hooks that keep a copy of what comes out of its
sites, and once through the tap, from the same seed, in both modes. Values are to be equal bit for bit; so are
gradients of a random projection of all values, with respect to every parameter, where autograd adds them up in the
same order: the largest difference, relative to the largest gradient, stands in the table. Results go to
``benchmarks/results/taps.json`` after each model; a run goes on where the last one ended.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy
import torch
from torch import nn

import graphaug as ga
from benchmarks import zoo
from benchmarks.coverage import ROOT, bit_equal, brief
from benchmarks.every_model import ask
from benchmarks.oracle import distance, first_tensor, gradients


def measure(case: zoo.Case) -> dict[str, Any]:
    """How the tap of one model compares with hooks."""
    record: dict[str, Any] = {"name": case.name, "group": case.group, "reason": "", "sites": [], "modes": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model, inputs, _ = case.build()
            sites = zoo.three_depths(model.eval(), inputs)
        except Exception as error:
            return {**record, "reason": f"cannot be built here: {brief(error)}"}
        record["sites"] = sites
        for mode in ("eval", "train"):
            model.train(mode == "train")
            try:
                record["modes"][mode] = compared(model, inputs, sites)
            except Exception as error:
                record["modes"][mode] = {"problem": brief(error)}
    return record


def compared(model: nn.Module, inputs: dict[str, Any], sites: list[str]) -> dict[str, Any]:
    """Values and gradients of the tap against those of hooks on a copy of the model, in the mode that it is in."""
    other = copy.deepcopy(model)
    seen: dict[str, Any] = {}

    def keep(site: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if site not in seen:  # the first call
                seen[site] = first_tensor(output).clone()

        return other.get_submodule(site).register_forward_hook(hook)

    for site in sites:
        keep(site)
    tapped = ga.tap(model, [f"{site}@0" for site in sites], example_inputs=inputs)
    seed()
    try:
        other(**inputs)
    except Exception as error:  # what a model's loss lacks comes after its blocks
        if set(seen) != set(sites):
            return {"problem": f"the model itself fails: {brief(error)}"}
    seed()
    found = [first_tensor(value) for value in tapped(**inputs).values()]
    expected = [seen[site] for site in sites]
    differ = [s for s, a, b in zip(sites, expected, found, strict=True) if not bit_equal(a, b)]
    if differ:
        return {"problem": f"values differ at {', '.join(differ)} by {distance(expected, found):.2g}"}
    theirs, mine = gradients(other, expected), gradients(model, found)
    bits = bit_equal(theirs, mine)
    return {"problem": "", "gradients_equal": bits, "gradient_gap": 0.0 if bits else distance(theirs, mine)}


def seed() -> None:
    """Set every generator: speech models draw the steps that they mask from numpy's."""
    random.seed(1)
    numpy.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def totals(models: list[dict[str, Any]]) -> dict[str, Any]:
    """By mode: how many models' values and gradients are equal, and the others by name."""
    table: dict[str, Any] = {"models": len(models), "not built": sum(bool(m["reason"]) for m in models)}
    for mode in ("eval", "train"):
        asked = {m["name"]: m["modes"][mode] for m in models if mode in m.get("modes", {})}
        equal = [f for f in asked.values() if not f["problem"]]
        table[mode] = {
            "values equal": len(equal),
            "gradients equal bit for bit": sum(f["gradients_equal"] for f in equal),
            "largest difference of the others' gradients": max(
                (f["gradient_gap"] for f in equal), default=0.0
            ),
            "not equal": {name: f["problem"] for name, f in asked.items() if f["problem"]},
        }
    return table


if __name__ == "__main__":
    ask(__doc__, measure, totals, ROOT / "benchmarks" / "results" / "taps.json")
