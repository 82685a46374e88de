"""What is measured of a method: the step, compiled and eager, its numbers, copies, plans as files, what is verified."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
from typing import Any

import torch
from torch import nn

import graphaug as ga
from benchmarks.transforms.methods import Method
from benchmarks.transforms.steps import (
    by_formula,
    difference,
    given,
    made,
    network,
    otherwise,
    parameters_of,
    step,
)
from graphaug.errors import InvalidOption


def compiled(aug: Any, method: Method) -> dict[str, Any]:
    """The compiled step beside the eager one, at two batch sizes' worth of seeds, and its numbers set in between."""
    torch._dynamo.reset()
    run, parameters = torch.compile(aug, fullgraph=True, backend="aot_eager"), parameters_of(aug)
    worst = difference(step(run, method, parameters), step(aug, method, parameters))
    names: set[str] = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for site, node in getattr(aug, "augmentations", {}).items():
            for name, value in node.numbers().items():
                if name == "subset":
                    continue
                aug.set(site, **{name: value + 1 if name[0] == "k" else value * 0.9})
                again = difference(step(run, method, parameters, 5), step(aug, method, parameters, 5))
                worst = max(worst, again)
                names.add(re.sub(r"_\d+$", "", name))
                aug.set(site, **{name: value})
        if "perturb" in method.make:
            aug.set(eta=0.5)
            worst = max(worst, difference(step(run, method, parameters, 5), step(aug, method, parameters, 5)))
            names.add("eta")
            aug.set(eta=1.0)
    return {"difference": worst, "numbers_set": sorted(names)}


def copies(aug: Any, method: Method, model: nn.Module) -> dict[str, Any]:
    """Whether copies and pickles, eval mode and the stripped model are the same, bit for bit."""
    parameters, x = parameters_of(aug), given()["x"]
    expected = step(aug, method, parameters)
    found = {
        kind: difference(step(twin, method, parameters_of(twin)), expected) == 0
        for kind, twin in (("copy", copy.deepcopy(aug)), ("pickle", pickle.loads(pickle.dumps(aug))))
    }
    if "features" not in method.name:
        model.eval()
        aug.eval()
        found["eval"] = torch.equal(aug(x), model(x))
        model.train()
        aug.train()
    if hasattr(aug, "plan"):
        found["strip"] = ga.strip(aug) is model
    return found


def from_file(aug: Any, method: Method) -> str:
    """What a plan that went through a file makes of another model of the same weights: "equal", or why not."""
    if getattr(getattr(aug, "plan", None), "purpose", "") != "rewrite":
        return ""
    try:
        text = aug.plan.to_json()
    except InvalidOption:
        return "refused"
    other = ga.rewrite(network(), ga.Plan.from_json(text), example_inputs=given()["x"])
    one, two = (step(a, method, parameters_of(a)) for a in (aug, other))
    return "equal" if difference(one, two) == 0 and str(other.plan) == str(aug.plan) else "differs"


def verified(aug: Any, method: Method) -> list[str]:
    """What `graphaug.verify` proves of it; nothing where it has no plan."""
    if not hasattr(aug, "plan"):
        return []
    values = given()
    entries = {n: values[n] for n in ("labels", "source") if f"{n}={n}" in method.use}
    with aug.given(**entries) if entries else contextlib.nullcontext():
        return list(ga.verify(aug, values["x"], tolerance=1e-9).claims)


def measured(method: Method, stop_grad: bool = False) -> dict[str, Any]:
    """All of it, with all gradients or with those of the augmented rows stopped."""
    model = network()
    aug = made(method, model, **({"stop_grad": True} if stop_grad else {}))
    found, expected = (by_formula if method.sites else otherwise)(aug, method, model)
    plan = getattr(aug, "plan", None)
    return {
        "difference": difference(found, expected),
        "backward": "" if plan is None else plan.backward,
        "reason": "" if plan is None else plan.reason,
        "compiled": compiled(aug, method),
        "copies": copies(aug, method, model),
        "plan_file": from_file(aug, method),
        "claims": verified(aug, method),
    }


def record(method: Method) -> dict[str, Any]:
    """A row of the table, as it is written down."""
    stops = method.make.startswith("aug = ga.rewrite")
    return {
        "method": method.name,
        "source": method.source,
        "code": method.code,
        "formula": method.formula,
        "passed": measured(method),
        "stopped": measured(method, stop_grad=True) if stops else None,
    }
