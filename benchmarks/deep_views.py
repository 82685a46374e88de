"""The step of deep views beside the step that runs both copies, and of skipped rows beside the plain step; compiled.

    python -m benchmarks.deep_views [--models vit-s bert-base] [--batch 4] [--rows 5] [--rounds 9] [--name NAME]
                                   [--parts views skipped] [--device cpu|cuda] [--threads 1] [--precision fp32 bf16]
                                   [--no-compile]

One process and one seed; the variants take turns, a step each per round, and medians with quartiles are reported. A
step is forward, loss and backward; the optimizer, the same for all, is left out. Each step is timed twice over: by the
clock on the wall, and by the processor time of this process, which another process on the machine takes nothing from.
Ratios are of medians of the second on a CPU. ``bf16`` runs the forward under autocast, its weights in float32.

- ``both copies``: Deep Augmentation at the last cut, on ``[x; x]``. ``views``: ``views=2`` there, on ``x``. The floor
  of their ratio is ``f/2 + 1 - f``, f being the share of the forward FLOPs up to the cut. ``stopped views``: with
  ``stop_grad`` on half of the rows, both views of each or neither; floor ``f/2·(1 - s·2/3) + 1 - f``, s being the half.
- ``plain``: the model without anything, on a batch of ``--rows``. ``skipped``: ``skip_rows`` at every branch of every
  block, at rate 0.4. The floor of their ratio is ``1 - r·b``: r the share of rows that is skipped of this batch, b the
  branches' share of the FLOPs. ``masked``: the same stochastic depth by multiplication, which computes every row.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import re
import statistics
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import graphaug
from benchmarks.coverage import ROOT, versions, write
from benchmarks.step import SUBJECTS, machine, output_of, quartiles
from graphaug.sparse.saving import floor

RATE, SKIPPED = 0.5, 0.4
BRANCHES = {"vit-s": "blocks.*.ls*"}
"""The ends of the branches of a model's blocks; of the others no rows are skipped."""


@dataclass
class Variant:
    """A way to run the step, with its inputs and what it took."""

    kind: str
    module: Any
    inputs: dict[str, Tensor]
    precision: str = "fp32"
    compile_seconds: float = 0.0
    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)

    def step(self, device: str) -> None:
        """Forward, loss, backward, timed."""
        if device == "cuda":
            torch.cuda.synchronize()
        start, used = time.perf_counter(), time.process_time()
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            out = output_of(self.module(**self.inputs))
        out.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        self.process.append(time.process_time() - used)
        self.wall.append(time.perf_counter() - start)
        for parameter in self.module.parameters():
            parameter.grad = None


class Masked(nn.Module):
    """Stochastic depth that computes all rows and multiplies with zeros: what ``skip_rows`` saves the work of."""

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        kept = max(1, round((1 - SKIPPED) * rows))
        mask = torch.randperm(rows, device=x.device).argsort() < kept
        return x * mask.view(-1, *[1] * (x.dim() - 1)) * (rows / kept)


def cut_of(rows: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first rows of some inputs, repeated where there are fewer."""
    return {n: t[torch.arange(count, device=t.device) % len(t)].clone() for n, t in rows.items()}


def measured(name: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """All variants of one model in one precision, in turns."""
    torch.manual_seed(0)
    model, inputs = SUBJECTS[name].build()
    model = model.to(options.device).train()
    inputs = {n: t.to(options.device) for n, t in inputs.items()}
    one, both = cut_of(inputs, options.batch), cut_of(inputs, options.batch)
    both = {n: torch.cat([t, t]) for n, t in both.items()}
    cut = SUBJECTS[name].cuts[-1]
    found, floors, share = [], {}, 0.0
    deep: dict[str, Any] = {"at": cut, "rate": RATE, "subset": 0.5, "backward": "auto", "example_inputs": one}
    if "views" in options.parts:
        copies, views = graphaug.rewrite(model, **deep), graphaug.rewrite(model, views=2, **deep)
        share = views.plan.sites[0].flops_before or 0.0
        stopped = graphaug.rewrite(model, views=2, pairing="together", stop_grad=True, **deep)
        found = [
            Variant("both copies", copies, both),
            Variant("views", views, one),
            Variant("stopped views", stopped, one),
        ]
        floors = {"views": floor(0, share, 2), "stopped views": floor(0.5, share, 2)}
    if name in BRANCHES and "skipped" in options.parts:
        branches = BRANCHES[name]
        rows = cut_of(inputs, options.rows)
        found.append(Variant("plain", model, rows))
        found.append(
            Variant("skipped", graphaug.skip_rows(model, branches, SKIPPED, example_inputs=rows), rows)
        )
        found.append(Variant("masked", masked(model), rows))
        kept = max(1, round((1 - SKIPPED) * options.rows))
        floors["skipped"] = 1 - (1 - kept / options.rows) * branch_share(model, rows)
    torch._dynamo.reset()
    for variant in found:
        variant.precision = precision
        start = time.perf_counter()
        if options.compile:
            variant.module = torch.compile(variant.module, fullgraph=True, dynamic=False)
        variant.step(options.device)
        variant.step(options.device)
        variant.compile_seconds = time.perf_counter() - start
        variant.wall, variant.process = [], []
        print(f"  {variant.kind} ready in {variant.compile_seconds:.0f} s", flush=True)
    for _ in range(options.rounds):
        for variant in found:
            variant.step(options.device)
    return report(name, cut, share, floors, found, options) | {"precision": precision}


def masked(model: nn.Module) -> nn.Module:
    """A copy of a ViT whose branches are multiplied with the rows that are kept."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:  # type: ignore[union-attr]
        block.ls1, block.ls2 = Masked(), Masked()
    return twin


def branch_share(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """The share of a ViT's forward FLOPs that its blocks have, all of it in branches."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    blocks = sum(count for name, count in counts.items() if re.search(r"\.blocks\.\d+$", name))
    return blocks / counts["Global"]


def report(
    name: str,
    cut: str,
    share: float,
    floors: dict[str, float],
    found: list[Variant],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What was measured of a model, as it is written down."""
    clock = "wall" if options.device == "cuda" else "process"
    base = {"views": "both copies", "stopped views": "both copies", "skipped": "plain", "masked": "plain"}
    middle = {v.kind: statistics.median(getattr(v, clock)) for v in found}
    rows = []
    for v in found:
        row: dict[str, Any] = {"step": v.kind, "rows": len(next(iter(v.inputs.values())))}
        for kind, seconds in (("process", v.process), ("wall", v.wall)):
            row[f"{kind}_seconds"] = [round(value, 4) for value in quartiles(seconds)]
        if v.kind in base:
            row["of"] = base[v.kind]
            # each step beside the one of the same round, so that a slow minute is in both
            other = next(o for o in found if o.kind == base[v.kind])
            pairs = [a / b for a, b in zip(getattr(v, clock), getattr(other, clock), strict=True)]
            row["ratio"] = round(middle[v.kind] / middle[base[v.kind]], 4)
            row["ratio_by_round"] = [round(value, 4) for value in quartiles(pairs)]
        if v.kind in floors:
            row["floor"] = round(floors[v.kind], 4)
            row["share_of_saving"] = round((1 - row["ratio"]) / (1 - floors[v.kind]), 3)
        row["compile_seconds"] = round(v.compile_seconds, 1)
        rows.append(row)
    return {"model": name, "cut": cut, "share_before_cut": round(share, 4), "steps": rows}


def table(record: dict[str, Any]) -> str:
    """The rows of one model as Markdown."""
    lines = [
        f"{record['model']}, {record['precision']}, cut {record['cut']} "
        f"({record['share_before_cut']:.1%} of the FLOPs before it)",
        "",
        "| step | rows | processor s (quartiles) | wall s | of | ratio (by round) | floor | of the saving |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["steps"]:
        low, middle, high = row["process_seconds"]
        cells = [
            row["step"],
            row["rows"],
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{row['wall_seconds'][1]:.2f}",
        ]
        if "of" in row:
            low, _, high = row["ratio_by_round"]
            cells += [row["of"], f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"]
            cells += [f"{row['floor']:.3f}", f"{row['share_of_saving']:.0%}"] if "floor" in row else ["", ""]
        lines.append("| " + " | ".join(map(str, [*cells, *[""] * (8 - len(cells))])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["vit-s", "bert-base"], choices=["vit-s", "bert-base"])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--parts", nargs="+", default=["views", "skipped"], choices=["views", "skipped"])
    parser.add_argument(
        "--batch", type=int, default=4, help="rows that come in; both copies are twice as many"
    )
    parser.add_argument("--rows", type=int, default=5, help="rows of the steps with skipped rows")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--name", default=None, help="of the machine, for the result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = options.name or ("gpu" if options.device == "cuda" else f"cpu{os.cpu_count()}")
    name += "" if len(options.parts) == 2 else f"-{options.parts[0]}"
    path = ROOT / "benchmarks/results" / f"deep-views-{name}.json"
    records = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model, precision in itertools.product(options.models, options.precision):
            print(f"{model}, {precision}:", flush=True)
            records.append(measured(model, precision, options))
            print(table(records[-1]) + "\n", flush=True)
            settings = {
                "threads": options.threads,
                "rounds": options.rounds,
                "rate": RATE,
                "skipped": SKIPPED,
            }
            load = "other processes shared the machine" if os.getloadavg()[0] > 1.5 else "nothing else ran"
            found = {"machine": {**machine(options.device), "load": load}, "versions": versions(), **settings}
            write(path, json.dumps({**found, "models": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
