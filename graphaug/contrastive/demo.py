"""The demonstration: SimCLR and Deep Augmentation at three sites on digits, with one budget of epochs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from graphaug.contrastive.config import PretrainConfig
from graphaug.contrastive.data import ImageData, load
from graphaug.contrastive.models import build_model
from graphaug.contrastive.pretrain import pretrain, probe
from graphaug.errors import RunDirectoryError

# A quarter of ResNet-18's width, on the digits' own 8×8 pixels: an epoch takes about a second on two cores.
BASE = PretrainConfig(model="resnet18-cifar:16", size=8, crop=0.5, batch_size=128, lr=0.1)

SETTINGS: dict[str, dict[str, Any]] = {
    "SimCLR, no Deep Augmentation": {},
    "+ Deep Augmentation at layer2": {"at": ("layer2",)},
    "+ Deep Augmentation at layer3": {"at": ("layer3",)},
    "+ Deep Augmentation at layer4": {"at": ("layer4",)},
}
UNTRAINED = "untrained encoder"
BASELINE = "SimCLR, no Deep Augmentation"
FILES = ("results.json", "results.txt", "accuracy.png")

Progress = Callable[[int, str], AbstractContextManager[Callable[[dict[str, Any]], None]]]


@dataclass(frozen=True)
class Row:
    """One setting's probes: accuracies in [0, 1], a linear one for each seed, few-label ones for each seed and draw."""

    name: str
    linear: tuple[float, ...]
    few: tuple[float, ...]

    @property
    def few_spread(self) -> float:
        """Standard deviation of the few-label accuracy over seeds and draws of the labels."""
        return stdev(self.few)


def run_demo(out: Path, *, epochs: int, seeds: int, force: bool, progress: Progress) -> str:
    """Run every setting for every seed, write ``results.json``, ``results.txt`` and ``accuracy.png``, give the table.

    Raises:
        RunDirectoryError: ``out`` holds something, and not ``force``.

    """
    if not force and out.is_dir() and any(out.iterdir()):
        raise RunDirectoryError(f"{str(out)!r} is not empty. Choose another directory, or pass --force.")
    start = time.perf_counter()
    data = load("digits")
    rows = [_untrained(data, seeds)]
    for number, (name, options) in enumerate(SETTINGS.items()):
        results = []
        for seed in range(seeds):
            config = replace(BASE, epochs=epochs, seed=seed, **options)
            directory = out / "runs" / f"{number}-{'-'.join(map(str, config.at)) or 'simclr'}-seed{seed}"
            with progress(epochs, f"{name}, seed {seed}") as on_epoch:
                done = pretrain(config, directory, force=force, data=data, on_epoch=on_epoch)
            results.append(done.result)
        rows.append(_row(name, results))
    text = table(rows, data, epochs, seeds, time.perf_counter() - start)
    (out / "results.txt").write_text(text + "\n", encoding="utf-8")
    (out / "results.json").write_text(
        json.dumps([row.__dict__ for row in rows], indent=2) + "\n", encoding="utf-8"
    )
    plot(rows, out / "accuracy.png")
    return f"{text}\nwritten to {out}{os.sep}: {', '.join(FILES)} and the runs"


def table(rows: list[Row], data: ImageData, epochs: int, seeds: int, seconds: float) -> str:
    """The rows as text, and what can be said of them."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"digits: {len(data.train)} training and {len(data.test)} test images; {BASE.model}, {epochs} epochs, "
        f"rate {BASE.rate}, subset {BASE.subset}, {seeds} seed(s)",
        "",
        f"{'linear probe, accuracy in %':<{width}}  {'all labels':>12}  5 labels a class",
    ]
    for row in rows:
        spread = f" ± {100 * stdev(row.linear):.1f}" if len(row.linear) > 1 else ""
        few = f"{100 * mean(row.few):.1f} ± {100 * row.few_spread:.1f}"
        lines.append(f"{row.name:<{width}}  {f'{100 * mean(row.linear):.1f}{spread}':>12}  {few:>16}")
    lines += [
        "",
        verdict(rows),
        f"± is the standard deviation over {_spread_of(seeds)}. {seconds:.0f} s in all.",
    ]
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """Where Deep Augmentation is ahead of plain SimCLR with few labels, and whether by more than the noise.

    All settings see the same draws of labels, so the differences are taken draw by draw: their mean, and its standard
    error over the draws.
    """
    baseline = next(row for row in rows if row.name == BASELINE)
    sentences = []
    for row in rows:
        if row.name in (BASELINE, UNTRAINED):
            continue
        differences = [a - b for a, b in zip(row.few, baseline.few, strict=True)]
        gain, error = 100 * mean(differences), 100 * stdev(differences) / len(differences) ** 0.5
        word = "ahead of" if gain > 2 * error else "behind" if gain < -2 * error else "level with"
        site = row.name.rpartition(" ")[2]
        sentences.append(f"at {site} {word} plain SimCLR ({gain:+.1f} ± {error:.1f} points)")
    return f"With 5 labels a class, Deep Augmentation is {'; '.join(sentences)}."


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
        [100 * mean(r.few) for r in rows],
        xerr=[100 * r.few_spread for r in rows],
        height=0.36,
        label="5 labels a class",
    )
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    # Bars start where the differences can be seen; the axis says so.
    axes.set_xlim(max(0, 100 * min(min(r.few) for r in rows) - 5), 100)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def _untrained(data: ImageData, seeds: int) -> Row:
    results = []
    with torch.random.fork_rng():
        for seed in range(seeds):
            torch.manual_seed(seed)
            results.append(probe(build_model(BASE.model), data, BASE.size))
    return _row(UNTRAINED, results)


def _row(name: str, results: list[dict[str, Any]]) -> Row:
    few = tuple(accuracy for result in results for accuracy in result["few_labels"]["accuracies"])
    return Row(name, tuple(result["linear"] for result in results), few)


def _spread_of(seeds: int) -> str:
    draws = "10 draws of the labels"
    return (
        f"{draws}; the single seed tells nothing of the spread over training runs"
        if seeds == 1
        else (f"{seeds} seeds (all labels), and over seeds and {draws} (5 labels)")
    )
