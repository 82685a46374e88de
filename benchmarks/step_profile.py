"""Where the time of a compiled step goes: plain, dense and sparse, kernel by kernel.

    python -m benchmarks.step_profile [--models bert-base] [--steps 7] [--threads 1]

The floor of a sparse step counts FLOPs. This says what else a step does: every kernel's time is put into a group by its
name, and the groups of the three steps stand side by side. Steps take turns, and the median of every group over the
steps is shown.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import warnings
from collections import Counter
from typing import Any

import torch
import torch._inductor.config
from torch.autograd import DeviceType

from benchmarks.coverage import ROOT, write
from benchmarks.step import SUBJECTS, Variant, machine, step, variants

GROUPS = {
    "matrix products, forward": r"^aten::addmm",
    "matrix products, backward": r"^aten::(mm|_?convolution|mkldnn)",
    "attention": r"^aten::bmm|softmax|scaled_dot_product",
    "the gradient of the table of words": r"embedding_dense_backward",
    "rows, taken and put back": r"index_select|sort|cat|scatter",
    "dropout, norms and activations, fused": r"cpp_fused",
}
REST = "the rest: Python, autograd, copies"


def group_of(name: str) -> str:
    """The first group whose pattern a kernel's name holds."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), REST)


def profiled(variant: Variant, inputs: dict[str, Any]) -> Counter[str]:
    """Milliseconds of one step by group."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(variant, inputs, "cpu")
    found: Counter[str] = Counter()
    for event in profile.key_averages():
        if event.device_type == DeviceType.CPU:
            found[group_of(event.key)] += event.self_cpu_time_total / 1000
    return found


def measure(name: str, steps: int) -> dict[str, Any]:
    """The groups of a model's three compiled steps at its last cut."""
    subject = SUBJECTS[name]
    _, inputs, found = variants(subject, subject.cuts[-1:], [0.5], ["compiled"], "cpu", True, False)
    for variant in found:
        torch._dynamo.reset()
        variant.module = torch.compile(variant.module, fullgraph=True)
        for _ in range(2):
            step(variant, inputs, "cpu")
    turns = [[profiled(variant, inputs) for variant in found] for _ in range(steps)]
    rows = {}
    for group in (*GROUPS, REST):
        medians = [statistics.median(turn[i][group] for turn in turns) for i in range(len(found))]
        rows[group] = {v.kind: round(ms, 1) for v, ms in zip(found, medians, strict=True)}
    totals = [statistics.median(turn[i].total() for turn in turns) for i in range(len(found))]
    rows["all"] = {v.kind: round(ms, 1) for v, ms in zip(found, totals, strict=True)}
    return {"model": name, "cut": subject.cuts[-1], "steps": steps, "milliseconds": rows}


def table(record: dict[str, Any]) -> str:
    """A model's groups as Markdown, with what each adds to the ratio of the sparse step to the plain one."""
    rows = record["milliseconds"]
    plain = rows["all"]["plain"]
    lines = [
        "| group | plain, ms | dense | sparse | sparse / plain | of the plain step |",
        "|---|---|---|---|---|---|",
    ]
    for group, ms in rows.items():
        ratio = f"{ms['sparse'] / ms['plain']:.2f}" if ms["plain"] > 1 else ""
        cells = [
            group,
            *(f"{ms[kind]:.0f}" for kind in ("plain", "dense", "sparse")),
            ratio,
            f"{ms['plain'] / plain:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return f"### {record['model']}, cut `{record['cut']}`\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["bert-base"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch._inductor.config.cpp.enable_kernel_profile = True
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    records = [measure(name, options.steps) for name in options.models]
    print(*map(table, records), sep="\n\n")
    result = {"machine": machine("cpu"), "threads": options.threads, "records": records}
    write(
        ROOT / f"benchmarks/results/step-profile-{options.threads}.json", json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
