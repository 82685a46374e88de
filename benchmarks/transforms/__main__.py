"""Methods that are a line here: each beside its formula, run by plain forward hooks with the same draws.

    python -m benchmarks.transforms [--only NAME ...]

Of every method in ``methods.py``: its lines of user code, executed as they stand; the largest difference of outputs and
gradients from the formula's, in float64, with all gradients and with those of the augmented rows stopped; the same of
the step compiled to one graph (``aot_eager``); how many of its numbers were set without a recompile; whether copies,
pickles, the stripped model, eval mode and a plan that was a file are the same; and how many claims ``graphaug.verify``
proves. Results go to ``benchmarks/results/transforms.json``, and the table into ``docs/methods.md`` between its marks.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch

from benchmarks.coverage import write
from benchmarks.transforms.measure import record
from benchmarks.transforms.methods import METHODS
from benchmarks.transforms.table import PAGE, RESULTS, on_page, table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=[m.name for m in METHODS], help="the others stay as they are"
    )
    chosen = parser.parse_args().only or [m.name for m in METHODS]
    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    if RESULTS.exists():
        known = {row["method"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["methods"]}
    for method in METHODS:
        if method.name in chosen:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[method.name] = record(method)
            print(f"{method.name}: {known[method.name]['passed']['difference']:.1e}", flush=True)
            write(RESULTS, as_text([known[m.name] for m in METHODS if m.name in known]))
    rows = [known[m.name] for m in METHODS if m.name in known]
    write(PAGE, on_page(PAGE.read_text(encoding="utf-8"), table(rows)))


def as_text(rows: list[dict[str, Any]]) -> str:
    """What is written down, as JSON."""
    found = {"torch": torch.__version__, "model": "two residual blocks on tokens, float64", "methods": rows}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
