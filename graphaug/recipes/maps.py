"""Maps of similarity between layers, as a picture: both estimators beside each other, and what the controls say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphaug.recipes.plan import Plan
from graphaug.recipes.runs.looks import MAPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (
    ("biased, rbf", "images", "biased, RBF"),
    ("unbiased, linear", "images", "unbiased, linear"),
    ("biased, rbf", "shuffled", "biased, RBF, shuffled"),
    ("unbiased, linear", "shuffled", "unbiased, linear, shuffled"),
)
"""Columns: estimator and kernel, what was looked at, and what stands above it."""


def maps_of(plan: Plan, out: Path) -> Figure:
    """A row a setting, a column an estimator and a control; means over the seeds that have one."""
    from matplotlib.figure import Figure

    rows = {name: found for name in plan.maps if (found := _of_setting(plan, out, name))}
    figure = Figure(figsize=(3.1 * len(SHOWN) + 0.8, 3.0 * max(1, len(rows))), layout="constrained")
    if not rows:
        figure.text(0.5, 0.5, "no run has a map", ha="center")
        return figure
    grid = figure.subplots(len(rows), len(SHOWN), squeeze=False)
    for line, (name, found) in zip(grid, rows.items(), strict=True):
        for axes, (how, what, title) in zip(line, SHOWN, strict=True):
            mean = np.mean([one["maps"][what][how] for one in found], axis=0)
            image = axes.imshow(mean, vmin=0, vmax=1, cmap="viridis", origin="lower")
            axes.set_title(f"{name}\n{title}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks(range(len(found[0]["sites"])), found[0]["sites"], fontsize=6, parse_math=False)
    figure.colorbar(image, ax=grid, label="CKA", shrink=0.6)
    return figure


def _of_setting(plan: Plan, out: Path, name: str) -> list[dict[str, Any]]:
    """What the runs of a setting wrote down, whatever seeds there are."""
    pattern = plan.folder(name, 0).name.removesuffix("0") + "*"
    files = sorted((out / "runs").glob(f"{pattern}/{MAPS}"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
