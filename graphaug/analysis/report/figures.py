"""The figures of the report; colour scales are perceptually uniform and fit for the colour-blind."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphaug.analysis.cka import CKA
from graphaug.analysis.geometry import Geometry
from graphaug.analysis.report.findings import IMAGES, Measurement, Words
from graphaug.analysis.segments import Stretch
from graphaug.contrastive.runs.files import write_file
from graphaug.terminal.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe & Ito's palette, which stays apart for the common forms of colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_NAMES: dict[str, Any] = {"fontsize": 8, "parse_math": False}
"""How names of sites are written: a dollar in one begins no formula."""

LEAST = 0.1
"""What an axis of a loss in nats, or of a measure of geometry, spans at least: noise should not fill a figure."""

LEAST_SCORE = 10.0
"""The same of an accuracy in %, or of a correlation times 100."""

_SITE_MEASURES: dict[str, Callable[[Geometry], float]] = {
    "alignment (mean squared distance)": lambda g: g.alignment,
    "uniformity (log mean potential)": lambda g: g.uniformity,
    "std·√D (1 on the sphere)": lambda g: g.spread,
    "effective rank / dimensions": lambda g: g.rank / g.dimensions,
}


def save(figure: Figure, stem: Path) -> dict[str, Path]:
    """Write ``stem.svg`` and ``stem.png``; the same figure gives the same files."""
    import matplotlib

    written = {}
    with matplotlib.rc_context({"svg.hashsalt": "graphaug"}):
        for kind in ("svg", "png"):
            metadata = {"Date": None} if kind == "svg" else None
            path = written[kind] = stem.with_suffix(f".{kind}")
            write_file(path, functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata))
    return written


def heat_map(similarity: CKA, found: Sequence[Stretch] = (), cuts: Sequence[str] = ()) -> Figure:
    """A CKA matrix with its stretches framed and the augmented sites marked."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = similarity.rows, similarity.columns
    side = max(3.5, 0.28 * max(len(rows), len(columns)) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(xlabel="site", ylabel="site")
    image = axes.imshow(similarity.values.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
    figure.colorbar(image, ax=axes, label=f"CKA ({similarity.estimator}, {similarity.kernel})", shrink=0.8)
    axes.set_xticks(range(len(columns)), [_marked(c, cuts) for c in columns], rotation=90, **_NAMES)
    axes.set_yticks(range(len(rows)), [_marked(r, cuts) for r in rows], **_NAMES)
    for stretch in found:
        corner = (stretch.start - 0.5, stretch.start - 0.5)
        axes.add_patch(
            Rectangle(corner, stretch.length, stretch.length, fill=False, edgecolor="white", linewidth=4)
        )
        axes.add_patch(
            Rectangle(corner, stretch.length, stretch.length, fill=False, edgecolor="#D55E00", linewidth=2)
        )
    for cut in cuts:
        if cut in rows and columns == rows:
            place = rows.index(cut) + 0.5
            axes.axhline(place, color="white", linestyle="--", linewidth=1.2)
            axes.axvline(place, color="white", linestyle="--", linewidth=1.2)
    return figure


def plane(runs: Mapping[str, Sequence[Measurement]], words: Words = IMAGES) -> Figure:
    """Alignment against uniformity, with arrows from one time of a run to the next."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="uniformity (log mean potential; lower spreads more)",
        ylabel="alignment (mean squared distance)",
    )
    lines: dict[str, Line2D] = {}
    for i, (name, measurements) in enumerate(runs.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        points = [(m.uniformity, m.alignment) for m in measurements]
        lines[name] = axes.plot(*zip(*points, strict=True), marker, markersize=4, color=colour)[0]
        for start, end in itertools.pairwise(points):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})
        for at in {0, len(measurements) - 1}:
            axes.annotate(
                f"{words.time} {measurements[at].time}",
                points[at],
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
    axes.margins(0.15)
    _span(axes, "x", LEAST)
    _span(axes, "y", LEAST)
    axes.grid(alpha=0.3)
    _legend(axes, lines)
    return figure


def sites(measurements: Sequence[Measurement], cuts: Sequence[str] = (), words: Words = IMAGES) -> Figure:
    """Geometry of every site, a line for each time at which it was measured, the last one in bold."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    measurements = [m for m in measurements if m.sites]
    names = [g.site for g in measurements[-1].sites]
    # without the scale's yellow end, which is faint on white
    scale = ListedColormap(mpl.colormaps["viridis"](torch.linspace(0, 0.85, 256).numpy()))
    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    times = Normalize(measurements[0].time, max(measurements[-1].time, measurements[0].time + 1))
    for axes, (label, measure) in zip(panels.flat, _SITE_MEASURES.items(), strict=True):
        axes.set_ylabel(label)
        for i, measurement in enumerate(measurements):
            axes.plot(
                range(len(names)),
                [measure(g) for g in measurement.sites],
                color=scale(times(measurement.time)),
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=2.5 if measurement is measurements[-1] else 1,
            )
        for cut in cuts:
            axes.axvline(names.index(cut), color="#D55E00", linestyle="--", linewidth=1.2)
        _span(axes, "y", LEAST)
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xticks(range(len(names)), [_marked(n, cuts) for n in names], rotation=90, **_NAMES)
        axes.set_xlabel("site")
    if len(measurements) > 1:
        figure.colorbar(ScalarMappable(times, scale), ax=panels, label=words.time, shrink=0.8)
    return figure


def curves(
    runs: Mapping[str, Sequence[tuple[int, float]]],
    measurements: Mapping[str, Sequence[Measurement]],
    words: Words = IMAGES,
    scored: int | None = None,
) -> Figure:
    """Loss, as (time, loss), and score over time.

    Args:
        runs: (time, loss) of every run.
        measurements: of every run.
        words: of the kind of run.
        scored: how many samples an accuracy is of: its axis spans at least four standard errors of one half.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, score = figure.subplots(1, 2)
    loss.set(xlabel=words.time, ylabel="training loss (nats)")
    score.set(xlabel=words.time, ylabel=words.score[0])
    lines: dict[str, Line2D] = {}
    for i, name in enumerate(runs):
        style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        if runs[name]:
            lines[name] = loss.plot(*zip(*runs[name], strict=True), **style)[0]
        probed = [(m.time, 100 * m.score) for m in measurements[name] if m.score is not None]
        if probed:
            score.plot(*zip(*probed, strict=True), **style)
    if not score.lines:
        score.text(0.5, 0.5, "not measured", transform=score.transAxes, ha="center")
    errors = 0.0 if scored is None else 4 * 50 / math.sqrt(scored)
    for axes, least in ((loss, LEAST), (score, max(LEAST_SCORE, errors))):
        _span(axes, "y", least)
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    if lines:
        _legend(loss, lines)
    return figure


def spectrum(runs: Mapping[str, Tensor]) -> Figure:
    """Singular values of the features, as shares of their sum."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot(
        xlabel="dimension, by size", ylabel="share of the singular values", yscale="log"
    )
    lines: dict[str, Line2D] = {}
    for i, (name, values) in enumerate(runs.items()):
        shown = values[values > 1e-8 * values[0]] if len(values) else torch.ones(1)
        colour = PALETTE[i % len(PALETTE)]
        lines[name] = axes.plot(range(1, len(shown) + 1), shown.tolist(), color=colour)[0]
    axes.grid(alpha=0.3)
    _legend(axes, lines)
    return figure


def _span(axes: Axes, which: str, least: float) -> None:
    """Widen an axis around its middle to what it should span at least."""
    low, high = getattr(axes, f"get_{which}lim")()
    if high - low < least:
        middle = (low + high) / 2
        getattr(axes, f"set_{which}lim")(middle - least / 2, middle + least / 2)


def _marked(name: str, cuts: Sequence[str]) -> str:
    return printable(f"✂ {name}" if name in cuts else name)


def _legend(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """A legend with the names as they are: a label is read as mathematics, and left out if it begins with ``_``."""
    legend = axes.legend(list(lines.values()), list(map(str, range(len(lines)))), fontsize=8)
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(name))
