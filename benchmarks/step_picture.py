"""The picture of the README, from the committed times of training steps: ``python -m benchmarks.step_picture``.

One group of bars a model, at its last cut, half of the rows stopped: compiled steps relative to the compiled step
without any augmentation. Nothing is measured here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/step-cpu2.json"
PICTURE = ROOT / "docs/images/step-costs.svg"
NAMES = {
    "vit-s": "ViT-S/16",
    "bert-base": "BERT-base shape",
    "convnext-t": "ConvNeXt-T",
    "resnet18-cifar": "ResNet-18\n(two streams)",
}
BARS = {
    "hook": ("a forward hook that does the same", "#9aa5b1"),
    "dense": ("graphaug, whole backward", "#4c78a8"),
    "sparse": ("graphaug, the backward of stopped rows skipped", "#e4572e"),
}


def last_cut(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Kind of step → its compiled row at the model's last cut, with half of the rows stopped."""
    rows = [r for r in record["rows"] if r["mode"] == "compiled" and r["cut"] and r["subset"] == 0.5]
    return {row["kind"]: row for row in rows if row["cut"] == rows[-1]["cut"]}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the bars with their quartiles and values."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "graphaug"  # the same picture from the same numbers, byte by byte
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.3), layout="constrained", facecolor="white")
    axes = figure.add_subplot(ylabel="time of a training step", ylim=(0, 1.3))
    for place, record in enumerate(records):
        for offset, kind in zip((-0.27, 0.0, 0.27), BARS, strict=True):
            row, (label, color) = last_cut(record)[kind], BARS[kind]
            low, high = row["ratio_quartiles"]
            axes.bar(place + offset, row["ratio"], 0.25, color=color, label=None if place else label)
            spread = [[row["ratio"] - low], [high - row["ratio"]]]
            axes.errorbar(place + offset, row["ratio"], spread, color="0.25", linewidth=1, capsize=2)
            axes.text(place + offset, 0.05, f"{row['ratio']:.2f}", ha="center", color="white", fontsize=9)
    axes.axhline(1, color="black", linewidth=1)
    axes.text(len(records) - 0.45, 1.01, "without any\naugmentation", fontsize=8, va="bottom", ha="right")
    axes.set_xticks(range(len(records)), [NAMES.get(r["model"], r["model"]) for r in records])
    axes.set_xlim(-0.5, len(records) - 0.45)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text(encoding="utf-8"))["models"], PICTURE)
    print(PICTURE)
