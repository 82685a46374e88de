"""Which architectures can be rewritten: torchvision, timm and transformers, each at three depths.

    python -m benchmarks.coverage [--only torchvision|timm|transformers] [--match TEXT] [--workers 2]

Every model is built from its configuration with random weights, so that nothing is downloaded. Per
site: capture (time, nodes), eval output bit-equal to the original at another batch size, and output
and gradients equal to a hand-written forward hook under the same masks (stop-gradient on, eval mode
but for the augmentation). Per model: ``torch.compile(fullgraph=True)`` of the training step on the
middle site. Results go to ``benchmarks/results/coverage.json`` and ``docs/coverage.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import graphaug
from benchmarks import tiny, zoo
from benchmarks.oracle import Masks, Where, distance, gradients, hook, imposed, leaves
from graphaug.sites import structure_of

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 900  # for one model; more is reported as a failure
SECONDS_OF_A_KIND = 90
GROUPS = ("torchvision", "timm", "transformers")
GRADIENT_TOLERANCE = 1e-4  # relative, float32; sums are taken in another order
INDUCTOR = (
    *("torchvision:resnet18", "torchvision:convnext_tiny", "torchvision:vit_b_16", "torchvision:swin_t"),
    *("timm:vision_transformer", "timm:efficientnet", "timm:maxxvit", "timm:mlp_mixer"),
    *(
        "transformers:bert:MaskedLM",
        "transformers:modernbert:MaskedLM",
        "transformers:vit:ImageClassification",
    ),
    "transformers:gpt2:CausalLM",
)


COLUMNS = ("ok", "failed", "compiles with fullgraph", "without example_inputs", "cannot be built here")
NEITHER = "the model itself does not compile: "


class Timeout(BaseException):
    """A model took longer than it may; nothing that asks for an error of the model's takes it for one."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `Timeout` in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise Timeout(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure(case: zoo.Case, *, compiled: bool = True) -> dict[str, Any]:
    """Everything the table says of one model.

    Returns:
        A record with ``name``, ``status`` ("ok", "failed", "cannot be built here"), ``reason`` and ``sites``.
    """
    record: dict[str, Any] = {
        "name": case.name,
        "group": case.group,
        "status": "ok",
        "reason": "",
        "sites": [],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model, inputs, other = case.build()
        except Exception as error:
            return {**record, "status": "cannot be built here", "reason": brief(error)}
        model.eval()
        places = zoo.three_depths(model, inputs, 2 if case.group == "tiny" else 3)
        if case.group == "tiny":
            places = places[len(places) // 2 :][:1]
        record["sites"] = [measure_site(model, inputs, other, place) for place in places]
        while case.group == "tiny":
            problem = record["sites"][0]["problem"]
            done = tiny.follow(problem, model, inputs, other)
            if not done:
                break
            record.setdefault("followed", []).append(done)
            record.setdefault("before", problem)
            record["sites"] = [measure_site(model, inputs, other, place) for place in places]
        record["without_examples"] = without_examples(model, places[len(places) // 2])
        bad = [s for s in record["sites"] if s["problem"]]
        if bad:
            record.update(status="failed", reason=f"{bad[0]['site']}: {bad[0]['problem']}")
        if compiled and not bad:
            place = places[len(places) // 2]
            record["fullgraph"] = measure_compile(model, inputs, place, "aot_eager")
            if case.name in INDUCTOR:
                record["inductor"] = measure_compile(model, inputs, place, "inductor")
            for backend in ("fullgraph", "inductor"):
                found = record.get(backend, "ok")
                if found != "ok" and not found.startswith(NEITHER):
                    record.update(status="failed", reason=f"{backend}: {found}")
    return record


def measure_site(
    model: nn.Module, inputs: dict[str, Any], other: dict[str, Any], place: str
) -> dict[str, Any]:
    """Capture at one site and compare with the original and with the hook."""
    row: dict[str, Any] = {"site": place, "problem": ""}
    begin = time.perf_counter()
    try:
        aug = graphaug.rewrite(
            model,
            at=f"{place}@0",
            rate=0.5,
            stop_grad=True,
            allow_bypass=True,
            backward="dense",
            example_inputs=inputs,
        )
    except graphaug.GraphaugError as error:
        return {**row, "problem": brief(error)}
    except Exception as error:
        return {**row, "problem": f"crashed: {brief(error)}"}
    row["seconds_with_checks"] = round(time.perf_counter() - begin, 4)
    row["seconds"] = capture_seconds(model, inputs, place)
    row["nodes"] = aug.plan.nodes
    row["assumptions"] = len(aug.plan.assumptions)
    row["separates"] = aug.plan.sites[0].note.startswith("separates")
    try:
        aug.eval()
        with torch.no_grad(), aug.only_the_graph():  # in eval mode it is the model itself that runs
            torch.manual_seed(0)
            expected = model(**other)
            torch.manual_seed(0)
            found = aug(**other)
        row["bit_equal"] = bit_equal(expected, found)
    except graphaug.errors.AssumptionViolated as error:
        row["bit_equal"] = None
        row["fixed"] = brief(error)
    except Exception as error:
        return {**row, "problem": f"eval failed: {brief(error)}"}
    if row["bit_equal"] is False:
        return {**row, "problem": "eval output differs from the original at another batch size"}
    try:
        try:
            row["gradient_gap"] = compare_gradients(model, aug, inputs, place)
        except AssertionError:  # Reformer can be differentiated in training mode only
            row["gradient_gap"] = compare_gradients(model, aug, inputs, place, training=True)
    except Exception as error:
        return {**row, "problem": f"gradient comparison failed: {brief(error)}"}
    if not row["gradient_gap"] <= GRADIENT_TOLERANCE:
        row["problem"] = f"gradients differ from the hook's by {row['gradient_gap']:.2g}"
    return row


def without_examples(model: nn.Module, place: str) -> str:
    """Where inputs were found if none are given, or why they were not."""
    try:
        plan = graphaug.rewrite(model, at=f"{place}@0", allow_bypass=True, backward="dense", dry_run=True)
    except graphaug.GraphaugError as error:
        return brief(error)
    found = next((n for n in plan.notes if n.startswith("example_inputs:")), "no question of the inputs")
    return f"ok: {found.partition('taken from ')[2] or found}"


def capture_seconds(model: nn.Module, inputs: dict[str, Any], place: str) -> float:
    """Processor time to capture a model in both modes; nothing is computed, so that it is one thread's."""
    begin = time.process_time()
    structure = structure_of(model, inputs)
    structure.calls([place])
    for training in (True, False):
        structure.capture(structure.around(place), training=training)
    return round(time.process_time() - begin, 4)


class Chain(nn.Module):
    """A forward of three operations a layer, all of them opened: what capture costs is in their number alone."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


def growth(sizes: tuple[int, ...] = (100, 200, 400, 800, 1600)) -> list[dict[str, float]]:
    """Capture time of chains of growing length."""
    torch.set_num_threads(1)
    rows = []
    for layers in sizes:
        seconds = capture_seconds(Chain(layers), {"x": torch.randn(4, 4)}, f"layers.{layers // 2}")
        rows.append({"nodes": 3 * layers, "seconds": seconds, "ms_per_node": 1000 * seconds / (3 * layers)})
    return rows


def compare_gradients(
    model: nn.Module, aug: Any, inputs: dict[str, Any], place: str, *, training: bool = False
) -> float:
    """Output and gradients of the rewritten model against a forward hook under the same masks."""
    model.train(training)
    masks = Masks(0.5, 0.5)
    torch.manual_seed(0)
    (augmentation,) = aug.augmentations.values()
    # of several tensors, that one with which the model goes on; samples where the plan says that they lie
    entry, rows = aug.plan.sites[0].entry, augmentation.place
    where = Where(rows.dim, rows.slices, rows.inner)
    with hook(model.get_submodule(place), masks, stop_grad=True, entry=entry, place=where):
        expected = model(**inputs)
    theirs = gradients(model, expected)
    aug.train(training)
    augmentation.train()
    torch.manual_seed(0)
    with imposed(augmentation, masks):
        found = aug(**inputs)
    mine = gradients(model, found)
    aug.eval()
    return max(distance(leaves(expected), leaves(found)), distance(theirs, mine))


def measure_compile(model: nn.Module, inputs: dict[str, Any], place: str, backend: str) -> str:
    """Compile the training step without a graph break; "ok" or what went wrong, with the plain model too."""
    torch._dynamo.reset()
    aug = graphaug.rewrite(
        model, at=f"{place}@0", stop_grad=True, allow_bypass=True, backward="dense", example_inputs=inputs
    )
    aug.train()
    try:
        out = torch.compile(aug, fullgraph=True, backend=backend)(**inputs)
        first = leaves(out)
        if first:
            first[0].float().sum().backward()
    except Exception as error:
        return ("" if compiles_plain(model, inputs, backend) else NEITHER) + brief(error)
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        torch._dynamo.reset()
    return "ok"


def compiles_plain(model: nn.Module, inputs: dict[str, Any], backend: str) -> bool:
    """Whether the model itself compiles without a graph break."""
    torch._dynamo.reset()
    model.train()
    try:
        torch.compile(model, fullgraph=True, backend=backend)(**inputs)
    except Exception:
        return False
    return True


def bit_equal(a: Any, b: Any) -> bool:
    """Equal floating-point tensors, in order; NaN equals NaN."""
    first, second = flat(a), flat(b)
    return len(first) == len(second) and all(
        s.shape == t.shape and s.dtype == t.dtype and torch.equal(s.nan_to_num(), t.nan_to_num())
        for s, t in zip(first, second, strict=True)
    )


def flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if hasattr(output, "values"):
        output = list(output.values())
    return [t for entry in output for t in flat(entry)] if isinstance(output, (tuple, list)) else []


def brief(error: BaseException) -> str:
    """The first line of an error, with its class."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def work(tasks: Any, results: Any, compiled: bool) -> None:
    """A worker: takes names, returns records, until told to stop."""
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    cases = {case.name: case for case in (*zoo.cases(), *zoo.kinds(), *tiny.cases())}
    while True:
        name = tasks.get()
        if name is None:
            return
        results.put(("begin", name))
        begin = time.perf_counter()
        try:
            with limited(SECONDS if cases[name].group in GROUPS else SECONDS_OF_A_KIND):
                record = measure(cases[name], compiled=compiled)
        except BaseException as error:
            record = {
                "name": name,
                "group": cases[name].group,
                "status": "failed",
                "reason": brief(error),
                "sites": [],
            }
        gc.collect()
        record["seconds"] = round(time.perf_counter() - begin, 1)
        results.put(("end", record))


def _die_with_the_parent() -> None:
    """End this worker once the run that began it was killed, in whatever it is."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def run(
    cases: list[zoo.Case], workers: int, compiled: bool, journal: Path | None = None
) -> list[dict[str, Any]]:
    """Measure all cases in worker processes; one that dies is reported and replaced.

    With ``journal``, every record is appended to that file, and those that it already holds are not measured again.
    """
    wanted = {case.name for case in cases}
    records: dict[str, dict[str, Any]] = {}
    if journal is not None and journal.exists():
        kept = map(json.loads, journal.read_text().splitlines())
        records = {record["name"]: record for record in kept if record["name"] in wanted}
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for case in cases:
        if case.name not in records:
            tasks.put(case.name)
    groups = {case.name: case.group for case in cases}
    for _ in range(workers):
        tasks.put(None)

    def start() -> Any:
        process = context.Process(target=work, args=(tasks, results, compiled), daemon=True)
        process.start()
        return process

    processes = [start() for _ in range(workers)]
    running: set[str] = set()
    while len(records) < len(cases):
        try:
            kind, what = results.get(timeout=5)
        except queue.Empty:
            for i, process in enumerate(processes):
                if not process.is_alive() and process.exitcode:
                    for name in list(running) if workers == 1 else []:
                        running.discard(name)
                        records[name] = died(name, groups[name])
                    processes[i] = start()
            if not any(p.is_alive() for p in processes):
                break
            continue
        if kind == "begin":
            running.add(what)
            continue
        running.discard(what["name"])
        records[what["name"]] = what
        if journal is not None:
            with journal.open("a") as file:
                file.write(json.dumps(what) + "\n")
        print(
            f"{len(records):4d}/{len(cases)}  {what['status']:<22} {what['name']}  {what['reason'][:140]}",
            flush=True,
        )
    for name in groups.keys() - records.keys():
        records[name] = died(name, groups[name])
    return [records[case.name] for case in cases]


def died(name: str, group: str) -> dict[str, Any]:
    return {
        "name": name,
        "group": group,
        "status": "failed",
        "reason": "the process died",
        "sites": [],
        "seconds": 0,
    }


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals per group and the spread of capture times."""
    groups: dict[str, dict[str, int]] = {}
    for record in records:
        counts = groups.setdefault(record["group"], dict.fromkeys(COLUMNS, 0))
        counts[record["status"]] += 1
        counts["compiles with fullgraph"] += record.get("fullgraph") == "ok"
        counts["without example_inputs"] += record.get("without_examples", "").startswith("ok")
    seconds = sorted(s["seconds"] for r in records for s in r["sites"] if "seconds" in s)
    spread = {"median": seconds[len(seconds) // 2], "slowest": seconds[-1]} if seconds else {}
    return {"groups": groups, "capture_seconds": spread, "sites": len(seconds)}


def versions() -> dict[str, str]:
    import timm
    import torchvision
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def page(
    records: list[dict[str, Any]],
    totals: dict[str, Any],
    chains: list[dict[str, float]],
    seconds: float,
    whose: str = "",
) -> str:
    """The text of ``docs/coverage.md``."""
    lines = [
        "# Coverage",
        "",
        "Which architectures `graphaug.rewrite` handles, measured by `make coverage` "
        f"({', '.join(f'{k} {v}' for k, v in versions().items())}; {seconds / 60:.0f} minutes{whose}).",
        "Every model is built from its configuration with random weights and rewritten at its first, middle and last",
        "block. A model counts as ok if at all of them it is captured, its eval output is bit-equal to the original at",
        "another batch size, output and gradients equal a hand-written forward hook under the same masks, and the",
        'training step compiles with `fullgraph=True` (`backend="aot_eager"`) wherever the model itself does.',
        "",
        "| group | ok | failed | ok, of those that can be built | compiles with fullgraph | rewritten without "
        "`example_inputs` | cannot be built here |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, counts in totals["groups"].items():
        built = counts["ok"] + counts["failed"]
        share = f"{counts['ok'] / built:.1%}" if built else "–"
        lines.append(
            f"| {group} | {counts['ok']} | {counts['failed']} | {share} | {counts['compiles with fullgraph']} | "
            f"{counts['without example_inputs']} | {counts['cannot be built here']} |"
        )
    spread = totals["capture_seconds"]
    if spread:
        lines += [
            "",
            f"Capture took {spread['median']:.2f} s in the median and {spread['slowest']:.2f} s for the slowest of "
            f"{totals['sites']} sites: processor time for both modes, one thread, checks left out.",
        ]
    lines += [
        "It grows with the number of opened operations; of chains without anything else:",
        "",
        "| opened nodes | capture, s | per node, ms |",
        "|---|---|---|",
        *(f"| {c['nodes']:,} | {c['seconds']:.2f} | {c['ms_per_node']:.2f} |" for c in chains),
    ]
    tables = {
        "Failures": {r["name"]: r["reason"] for r in records if r["status"] == "failed"},
        "Models that do not compile with fullgraph, rewritten or not": {
            r["name"]: r["fullgraph"].removeprefix(NEITHER)
            for r in records
            if r.get("fullgraph", "").startswith(NEITHER)
        },
        "Not built here": {r["name"]: r["reason"] for r in records if r["status"] == "cannot be built here"},
    }
    for title, rows in tables.items():
        lines += (
            ["", f"## {title}", "", "| model | reason |", "|---|---|"]
            if rows
            else ["", f"## {title}", "", "None."]
        )
        lines += [
            f"| {name} | {reason.replace('|', '/').replace('<', '‹')} |" for name, reason in rows.items()
        ]
    inductor = [r["name"] for r in records if r.get("inductor") == "ok"]
    lines += ["", f"Compiled by Inductor, {len(inductor)} of {len(INDUCTOR)} tried: {', '.join(inductor)}."]
    fixed = [(r["name"], s["fixed"]) for r in records for s in r["sites"] if s.get("fixed")]
    if fixed:
        lines += ["", "## Captured for one size only", "", "| model | what the graph assumes |", "|---|---|"]
        lines += [f"| {name} | {what.replace('|', '/')} |" for name, what in dict(fixed).items()]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure which architectures can be rewritten.")
    parser.add_argument(
        "--only",
        choices=[*GROUPS, "kinds", "tiny"],
        help="no part of the table are kinds, every base model of transformers, and tiny, those of its own tests",
    )
    parser.add_argument("--tests", type=Path, help="for tiny: a checkout of transformers")
    parser.add_argument("--match", default="", help="only models whose name contains this")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--journal", type=Path, help="keep every record here; go on from those it holds")
    parser.add_argument(
        "--out", type=Path, default=None, help="write coverage.json and coverage.md here instead"
    )
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.tests is not None:
        os.environ[tiny.FOLDER] = str(options.tests.resolve())
    known = {"kinds": zoo.kinds, "tiny": tiny.cases}.get(options.only, zoo.cases)()
    cases = [c for c in known if options.match in c.name and options.only in (None, c.group)]
    if not cases:
        sys.exit(f"no model matches {options.match!r}")
    begin = time.perf_counter()
    records = run(cases, options.workers, not options.no_compile, options.journal)
    seconds = time.perf_counter() - begin if options.journal is None else sum(r["seconds"] for r in records)
    whose = "" if options.journal is None else " of its workers together, in several sittings"
    totals = summary(records)
    print(json.dumps(totals, indent=2))
    if options.only == "tiny" and not options.match:
        write((options.out or ROOT / "benchmarks/results") / "tiny.json", tiny.result(records, versions()))
    whole = not options.match and options.only is None
    if not whole and options.out is None:
        return
    chains = growth()
    result = {
        "versions": versions(),
        "seconds": round(seconds),
        "totals": totals,
        "growth": chains,
        "models": records,
    }
    target = options.out
    write((target or ROOT / "benchmarks/results") / "coverage.json", json.dumps(result, indent=1) + "\n")
    write((target or ROOT / "docs") / "coverage.md", page(records, totals, chains, seconds, whose))


if __name__ == "__main__":
    main()
