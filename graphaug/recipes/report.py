"""What a figure's runs came to: the table, the picture, the verdicts, and all numbers in a file."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphaug.analysis.report.figures import MARKERS, PALETTE, save
from graphaug.contrastive.runs.compare import interval
from graphaug.contrastive.runs.files import write_json, write_text
from graphaug.recipes.choice import Chosen, choose
from graphaug.recipes.claims import LEVEL, Values, Verdict, judge
from graphaug.recipes.maps import maps_of
from graphaug.recipes.plan import Plan
from graphaug.recipes.sweep import Outcomes
from graphaug.terminal.table import Column, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("results.json", "results.txt", "figure.svg", "figure.png")

CHOSEN = (
    "chosen by the linear probe on images held out of the training set, for each seed by the other seeds' runs;",
    "the test accuracy of the choice at this seed, once for each run, and the difference to the baseline by seed",
)


def values(outcomes: Outcomes, measure: str) -> dict[str, dict[int, float | None]]:
    """A measure by setting and seed; None where a run diverged."""
    return {
        name: {seed: o.figures.get(measure) for seed, o in by_seed.items() if o.failed is None}
        for name, by_seed in outcomes.items()
    }


def report(figure: str, plan: Plan, outcomes: Outcomes, out: Path | None, width: int | None = None) -> str:
    """The table and the verdicts as text; with ``out`` they are written there, with the picture and all numbers."""
    verdicts = [judge(claim, values(outcomes, plan.measure)) for claim in plan.claims]
    found = chosen(plan, outcomes)
    text = "\n".join(
        [
            *table(plan, outcomes, width),
            *foot(plan),
            "",
            *spoken(verdicts, plan),
            *spoken_choices(found, outcomes),
        ]
    )
    if out is not None:
        whole = text if width is None else report(figure, plan, outcomes, None)
        write_text(out / "results.txt", whole + "\n")
        write_json(out / "results.json", as_json(figure, plan, outcomes, verdicts))
        save(picture(plan, outcomes), out / "figure")
        if plan.maps:
            save(maps_of(plan, out), out / "maps")
    return text


def table(plan: Plan, outcomes: Outcomes, width: int | None = None) -> list[str]:
    """One row a setting: each measure over its seeds, and the difference to its baseline."""
    names = [s.name for s in plan.settings]
    columns = [
        Column("setting", tuple(names), cut="end"),
        Column("runs", tuple(_counted(outcomes[name].values()) for name in names)),
    ]
    for rank, (measure, title) in enumerate(plan.measures.items()):
        found = values(outcomes, measure)
        cells = tuple(shown([v for v in found[name].values() if v is not None]) for name in names)
        columns.append(Column(title, cells, rank))
    found = values(outcomes, plan.measure)
    bases = set(plan.baseline.values())
    title = f"to {bases.pop()}" if len(bases) == 1 else "to its baseline"
    columns.insert(3, Column(title, tuple(_difference(name, plan, found) for name in names)))
    return render(columns, width)


def foot(plan: Plan) -> list[str]:
    """What stands below the table: what its numbers are."""
    return [
        f"{plan.scores}, mean over seeds ± half the 95 % confidence interval (Student's t); 'to …' by seed",
        f"no setting was chosen by these numbers: all are shown, and each run read the {plan.tested_on} {plan.read}",
    ]


def _counted(outcomes: Any) -> str:
    """How many runs came to their end, and how many did not."""
    all_of_them = list(outcomes)
    lost = sum(o.diverged is not None for o in all_of_them)
    failed = sum(o.failed is not None for o in all_of_them)
    words = [str(len(all_of_them) - lost - failed)]
    words += [f"{n} {word}" for n, word in ((lost, "diverged"), (failed, "failed")) if n]
    return ", ".join(words)


def _difference(name: str, plan: Plan, found: Values) -> str:
    base = plan.baseline.get(name)
    if base is None:
        return ""
    pairs = [(found[name][seed], found[base].get(seed)) for seed in found[name]]
    if any(a is None or b is None for a, b in pairs):
        return "diverged"
    return shown([a - b for a, b in pairs if a is not None and b is not None], sign="+")


def shown(accuracies: list[float], sign: str = "") -> str:
    """Figures as their mean times 100, ± half the 95 % interval; empty if there are none."""
    middle, half = interval([100 * a for a in accuracies])
    if math.isnan(middle):
        return ""
    return f"{middle:{sign}.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def spoken(verdicts: list[Verdict], plan: Plan) -> list[str]:
    """A verdict a claim, and by which test."""
    lines = [
        f"claims, by the {plan.measures[plan.measure]}, paired by seed, with Holm's correction over the sites"
    ]
    for verdict in verdicts:
        lines.append(f"  {verdict.outcome.upper():<15} {verdict.claim.text}")
        lines.append(f"{'':18}{verdict.why} (said in: {verdict.claim.source})")
    return lines


def chosen(plan: Plan, outcomes: Outcomes) -> list[Chosen]:
    """What was chosen on validation images, where any were held out."""
    by, test = values(outcomes, plan.chosen_by), values(outcomes, plan.measure)
    known = {name: {s: v for s, v in seeds.items() if v is not None} for name, seeds in by.items()}
    if not any(known.values()):
        return []
    found = [choose(choice, by, test) for choice in plan.choices]
    return [one for one in found if one is not None]


def spoken_choices(found: list[Chosen], outcomes: Outcomes) -> list[str]:
    """A choice a line: how well it did, against what, and what it was at each seed."""
    if not found:
        return []
    lines = ["", *CHOSEN]
    for one in found:
        against = shown(list(one.difference.values()), sign="+") or "the baseline diverged"
        p = f", p = {one.ahead:.3f}" if one.difference else ""
        lines.append(
            f"  {one.choice.name}: {shown(list(one.accuracy.values()))}; to {one.choice.baseline}: {against}{p}"
        )
        names = ", ".join(f"seed {seed}: {name}" for seed, name in one.settings.items())
        lines.append(f"{'':4}{names}")
    return lines


def as_json(figure: str, plan: Plan, outcomes: Outcomes, verdicts: list[Verdict]) -> dict[str, Any]:
    """Every run's numbers, and every claim's tests."""
    from graphaug.vision.config import versions

    return {
        "figure": figure,
        "level_of_a_side": LEVEL,
        "measures": dict(plan.measures),
        "baseline": dict(plan.baseline),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {s.name: s.config.to_dict() for s in plan.settings},
        "runs": [
            {
                "setting": name,
                "seed": seed,
                **{measure: outcome.figures.get(measure) for measure in plan.measures},
                "training_seconds": outcome.seconds,
                "diverged": outcome.diverged,
                "failed": outcome.failed,
            }
            for name, by_seed in outcomes.items()
            for seed, outcome in sorted(by_seed.items())
        ],
        "claims": [
            {
                "claim": v.claim.text,
                "source": v.claim.source,
                "of": v.claim.kind,
                "verdict": v.outcome,
                "why": v.why,
                "members": [vars(t) for t in v.tests],
            }
            for v in verdicts
        ],
        "choices": [
            {
                "choice": c.choice.name,
                "among": list(c.choice.among),
                "baseline": c.choice.baseline,
                "chosen": {str(seed): name for seed, name in c.settings.items()},
                "accuracy": {str(seed): value for seed, value in c.accuracy.items()},
                "difference": {str(seed): value for seed, value in c.difference.items()},
                "p_ahead": c.ahead,
            }
            for c in chosen(plan, outcomes)
        ],
    }


def picture(plan: Plan, outcomes: Outcomes) -> Figure:
    """The measure at each site or other mark, a line a treatment, with intervals over seeds; what has none, across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel=plan.axis, ylabel=f"{plan.measures[plan.measure]} ({plan.unit})")

    def of(name: str, mark: str = "") -> tuple[float, float]:
        found = values(outcomes, plan.drawn.get(mark, plan.measure)).get(name, {})
        return interval([100 * v for v in found.values() if v is not None])

    for number, (name, at) in enumerate(plan.lines.items()):
        marks = [(plan.marks.index(mark), *of(setting, mark)) for mark, setting in at.items()]
        x, middles, halves = zip(*marks, strict=True)
        axes.errorbar(
            [i + 0.06 * (number - 0.5) for i in x],
            middles,
            [0.0 if math.isnan(h) else h for h in halves],
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            markersize=5,
            label=name,
        )
    for number, name in enumerate(plan.level, len(plan.lines)):
        middle, half = of(name)
        colour = PALETTE[number % len(PALETTE)]
        axes.axhline(middle, color=colour, linestyle="--", linewidth=1.2, label=name)
        if not math.isnan(half):
            axes.axhspan(middle - half, middle + half, color=colour, alpha=0.08)
    axes.set_xticks(range(len(plan.marks)), plan.marks, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
