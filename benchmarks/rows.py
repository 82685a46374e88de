"""How many prefixes have rows that are proved independent: the models of the coverage table, each at three depths.

    python -m benchmarks.rows [--match TEXT] [--minutes 60] [--backwards]

Every model is built as in `benchmarks.coverage`, without drawing its weights, which no proof reads, and its prefixes
are followed in training mode, with a symbol for the number of rows. Results go to ``benchmarks/results/rows.json``
after each model; a run goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks import zoo
from benchmarks.coverage import ROOT, Timeout, brief
from benchmarks.every_model import SECONDS, ask
from graphaug.capture.target import Target
from graphaug.errors import GraphaugError
from graphaug.proof.independence.places import Proof
from graphaug.proof.independence.samples import find_samples
from graphaug.sites import structure_of
from graphaug.surgery.place import fresh_names, place

_DRAWS = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
          "xavier_normal_", "orthogonal_", "sparse_")  # fmt: skip


@contextlib.contextmanager
def undrawn_weights() -> Iterator[None]:
    """Let ``torch.nn.init`` draw nothing: weights are what the memory held."""

    def keep(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    with contextlib.ExitStack() as stack:
        for name in _DRAWS:
            stack.enter_context(mock.patch.object(nn.init, name, keep))
        yield


def measure(case: zoo.Case) -> dict[str, Any]:
    """What is proved of the prefixes of one model."""
    record: dict[str, Any] = {"name": case.name, "group": case.group, "reason": "", "sites": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with undrawn_weights():
                model, inputs, _ = case.build()
            places = zoo.three_depths(model.eval(), inputs)
        except Exception as error:
            return {**record, "reason": f"cannot be built here: {brief(error)}"}
        for path in places:
            record["sites"].append({"site": path, **_asked(model, inputs, path)})
    return record


def _asked(model: nn.Module, inputs: dict[str, Any], path: str) -> dict[str, Any]:
    begin = time.process_time()
    try:
        structure = structure_of(model, inputs)
        names = fresh_names(model, [Target(path, None, 0)])
        captured, graph, placed = place(structure, names, training=True)
        cuts = list(placed.values())
        samples = find_samples(model, graph, cuts, structure.signature.examples, captured.constants)
    except GraphaugError as error:
        return {"verdict": "refused", "said": brief(error)}
    except Exception as error:
        return {"verdict": "refused", "said": f"crashed: {brief(error)}"}
    (proof,) = samples.proofs
    if "Timeout" in str(proof.meeting):  # the proof takes any error of a forward for one
        raise Timeout(f"took longer than {SECONDS} s")
    found = {"verdict": _verdict(proof), "said": "" if proof.meeting is None else str(proof.meeting)}
    meeting = proof.meeting
    return {
        **found,
        "op": "" if meeting is None else meeting.op,
        "rows": samples.places[0].describe(None) + ("" if samples.places[0].is_plain else " in slices"),
        "dims": sorted(set(samples.dims.values())),
        "operations": proof.operations,
        "seconds": round(time.process_time() - begin, 3),
    }


def _verdict(proof: Proof) -> str:
    """``proved``, ``statistics``, ``coupled``, ``tried`` where an operation without a rule may be, or ``unknown``."""
    if proof.verdict == "unknown" and proof.meeting is not None and proof.meeting.op:
        return "tried"
    return proof.verdict


def totals(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The table: by verdict, what couples and what is unknown, and the share of the exact prefixes that is proved."""
    sites = [(m, s) for m in models for s in m.get("sites", [])]
    by = Counter(s["verdict"] for _, s in sites)
    names: dict[str, list[str]] = {}
    for m, s in sites:
        if s["verdict"] in ("coupled", "tried", "unknown", "refused"):
            names.setdefault(f"{s['verdict']}: {s['said']}", []).append(f"{m['name']} {s['site']}")
    exact = by["proved"] + by["tried"] + by["unknown"]
    moved = sorted({m["name"] for m, s in sites if s.get("rows", "dimension 0") != "dimension 0"})
    return {
        "models": len(models),
        "not built": sum(bool(m["reason"]) for m in models),
        "prefixes": dict(by),
        "proved of those without coupling": round(by["proved"] / exact, 4) if exact else None,
        "rows elsewhere than in dimension 0": moved,
        "not proved": dict(sorted(names.items())),
    }


if __name__ == "__main__":
    ask(__doc__, measure, totals, ROOT / "benchmarks" / "results" / "rows.json")
