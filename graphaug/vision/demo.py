"""The demonstration: SimCLR and Deep Augmentation at three sites on digits, with one budget of epochs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from graphaug.contrastive.runs.files import make_folder
from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import RunDirectoryError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import load
from graphaug.vision.models import build_model
from graphaug.vision.pretrain import pretrain, probe

# A quarter of ResNet-18's width, on the digits' own 8×8 pixels: an epoch takes about a second on a core.
BASE = PretrainConfig(model="resnet18-cifar:16", size=8, crop=0.5, batch_size=128, lr=0.1)

BASELINE = "SimCLR, no Deep Augmentation"
UNTRAINED = "untrained encoder"
SETTINGS: dict[str, dict[str, Any] | None] = {
    UNTRAINED: None,
    BASELINE: {},
    "+ Deep Augmentation at layer2": {"at": ("layer2",)},
    "+ Deep Augmentation at layer3": {"at": ("layer3",)},
    "+ Deep Augmentation at layer4": {"at": ("layer4",)},
}
FILES = ("results.json", "results.txt", "accuracy.png")

Report = Callable[[int, int, str], None]
"""Called with how many runs are done, how many there are, and a line about the last one."""


@dataclass(frozen=True)
class Row:
    """One setting's probes, accuracies in [0, 1].

    ``linear``: with all labels, one for each seed; ``few``: for each seed one for each draw of the few labels.
    """

    name: str
    linear: tuple[float, ...]
    few: tuple[tuple[float, ...], ...]

    @property
    def few_mean(self) -> float:
        """Mean of the few-label accuracy over seeds and draws."""
        return mean(mean(draws) for draws in self.few)

    @property
    def few_spread(self) -> float:
        """Standard deviation of the few-label accuracy over seeds and draws."""
        return stdev(accuracy for draws in self.few for accuracy in draws)


@dataclass(frozen=True)
class Job:
    """One run: a setting's ``name``, its ``config``, and the run directory, None for the untrained encoder."""

    name: str
    config: PretrainConfig
    out: Path | None
    force: bool

    def run(self) -> dict[str, Any]:
        """Pretrain and probe, give the probes' result."""
        if self.out is not None:
            return pretrain(self.config, self.out, force=self.force).result
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return probe(build_model(self.config.model), load(self.config.data), self.config.size)


def run_demo(out: Path, *, epochs: int, seeds: int, workers: int, force: bool, report: Report) -> str:
    """Run every setting for every seed, write ``results.json``, ``results.txt`` and ``accuracy.png``, give the table.

    Args:
        out: directory for these and for the runs.
        epochs: the budget of each run.
        seeds: runs of each setting.
        workers: processes that share the runs; with 1, this process makes them.
        force: replace what is in ``out``.
        report: told of every run that is done.

    Raises:
        RunDirectoryError: ``out`` holds something, and not ``force``; or it cannot be made.

    """
    if not force and out.is_dir() and any(out.iterdir()):
        raise RunDirectoryError(f"{str(out)!r} is not empty. Choose another directory, or pass --force.")
    make_folder(out)
    start = time.perf_counter()
    jobs = [
        Job(name, replace(BASE, epochs=epochs, seed=seed, **(options or {})), directory, force)
        for name, options in SETTINGS.items()
        for seed in range(seeds)
        for directory in [None if options is None else out / "runs" / f"{_slug(options)}-seed{seed}"]
    ]
    results = _run_all(jobs, workers, report)
    rows = [
        _row(name, [r for job, r in zip(jobs, results, strict=True) if job.name == name]) for name in SETTINGS
    ]
    text = table(rows, results[0], epochs, seeds, time.perf_counter() - start)
    (out / "results.txt").write_text(text + "\n", encoding="utf-8")
    (out / "results.json").write_text(
        json.dumps([row.__dict__ for row in rows], indent=2) + "\n", encoding="utf-8"
    )
    plot(rows, out / "accuracy.png")
    return f"{text}\nwritten to {out}{os.sep}: {', '.join(FILES)} and the runs"


def _run_all(jobs: list[Job], workers: int, report: Report) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    for index, result in Executor(workers=workers).map(Job.run, jobs):
        results[index] = result
        few = result["few_labels"]["mean"]
        seed = f"{jobs[index].name}, seed {jobs[index].config.seed}"
        report(len(results), len(jobs), f"{seed}: {result['linear']:.1%}, with 5 labels a class {few:.1%}")
    return [results[index] for index in range(len(jobs))]


def _slug(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.get("at", ()))) or "simclr"


def table(rows: list[Row], sizes: dict[str, Any], epochs: int, seeds: int, seconds: float) -> str:
    """The rows as text, and what can be said of them; ``sizes`` is any run's result."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"digits: {sizes['train_images']} training and {sizes['test_images']} test images; {BASE.model}, "
        f"{epochs} epochs, rate {BASE.rate}, subset {BASE.subset}, {seeds} seed(s)",
        "",
        f"{'linear probe, accuracy in %':<{width}}  {'all labels':>12}  5 labels a class",
    ]
    for row in rows:
        spread = f" ± {100 * stdev(row.linear):.1f}" if len(row.linear) > 1 else ""
        few = f"{100 * row.few_mean:.1f} ± {100 * row.few_spread:.1f}"
        lines.append(f"{row.name:<{width}}  {f'{100 * mean(row.linear):.1f}{spread}':>12}  {few:>16}")
    lines += [
        "",
        verdict(rows),
        f"± is the standard deviation over {_spread_of(seeds)}. {seconds:.0f} s in all.",
    ]
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """How far Deep Augmentation is ahead of plain SimCLR with few labels, and in how many of the seeds.

    Runs of one seed share their initial weights, order, views and draws of labels, so they are compared pair by pair.
    """
    baseline = next(row for row in rows if row.name == BASELINE)
    sentences = []
    for row in rows:
        if row.name in (BASELINE, UNTRAINED):
            continue
        gains = [100 * (mean(a) - mean(b)) for a, b in zip(row.few, baseline.few, strict=True)]
        ahead = sum(gain > 0 for gain in gains)
        site = row.name.rpartition(" ")[2]
        sentences.append(f"at {site} by {mean(gains):+.1f} points (ahead in {ahead} of {len(gains)})")
    return f"5 labels a class, Deep Augmentation against plain SimCLR, seed by seed: {'; '.join(sentences)}."


def plot(rows: list[Row], path: Path) -> None:
    """Bars of both probes for every setting, the few-label ones with their spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="linear probe, accuracy (%)")
    places = range(len(rows))
    axes.barh(
        [p - 0.2 for p in places], [100 * mean(r.linear) for r in rows], height=0.36, label="all labels"
    )
    axes.barh(
        [p + 0.2 for p in places],
        [100 * r.few_mean for r in rows],
        xerr=[100 * r.few_spread for r in rows],
        height=0.36,
        label="5 labels a class",
    )
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    # Bars start where the differences can be seen; the axis says so.
    axes.set_xlim(max(0, 100 * min(r.few_mean - r.few_spread for r in rows) - 5), 100)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def _row(name: str, results: list[dict[str, Any]]) -> Row:
    few = tuple(tuple(result["few_labels"]["accuracies"]) for result in results)
    return Row(name, tuple(result["linear"] for result in results), few)


def _spread_of(seeds: int) -> str:
    draws = "10 draws of the labels"
    return (
        f"{draws}; the single seed tells nothing of the spread over training runs"
        if seeds == 1
        else (f"{seeds} seeds (all labels), and over seeds and {draws} (5 labels)")
    )
