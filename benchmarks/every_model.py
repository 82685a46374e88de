"""A question asked of every model of the coverage table, one after the other, where the last run ended."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import zoo
from benchmarks.coverage import Timeout, brief, limited, versions

SECONDS = 900  # for one model
Record = dict[str, Any]


def ask(
    about: str,
    measure: Callable[[zoo.Case], Record],
    totals: Callable[[list[Record]], Record],
    results: Path,
) -> None:
    """The command line of such a benchmark: ``[--match TEXT] [--minutes 60] [--backwards]``.

    Models are taken in an order drawn by their names, so that a run that was ended early is a sample of all.

    Args:
        about: what the help says.
        measure: the answer for one model: a record with its ``name``, ``group`` and ``reason``, why there is none.
        totals: what is said of all answers together.
        results: a file that is written after each model, and of which no model is asked again.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--match", default="", help="only models with this in their name")
    parser.add_argument("--minutes", type=float, default=1e6, help="end after so many minutes")
    parser.add_argument("--backwards", action="store_true", help="from the last model on, beside another run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    waiting = [c for c in zoo.cases() if options.match in c.name]
    waiting.sort(key=lambda c: hashlib.sha256(c.name.encode()).hexdigest(), reverse=options.backwards)
    end = time.monotonic() + 60 * options.minutes
    for case in waiting:
        if time.monotonic() > end:
            break
        if case.name in known(results):
            continue
        try:
            with limited(SECONDS):
                record = measure(case)
        except (Exception, Timeout) as error:
            record = {"name": case.name, "group": case.group, "reason": brief(error)}
        done = sorted({**known(results), case.name: record}.values(), key=lambda m: (m["group"], m["name"]))
        text = json.dumps({"versions": versions(), "totals": totals(done), "models": done}, indent=1)
        results.write_text(text + "\n")
        print(json.dumps({k: v for k, v in record.items() if k != "group"}), flush=True)
        gc.collect()


def known(results: Path) -> dict[str, Record]:
    """The records so far, by the model's name; another run may add to them."""
    return {m["name"]: m for m in json.loads(results.read_text())["models"]} if results.exists() else {}
