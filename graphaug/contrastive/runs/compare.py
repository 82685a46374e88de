"""Finished runs side by side: one row a setting, with mean and confidence interval over its seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.files import runs_beside
from graphaug.errors import CheckpointError, ConfigError, RunDirectoryError, did_you_mean
from graphaug.terminal.table import Column, render

NOT_COMPARED = ("seed", "resolved", "versions", "devices", "accelerator", "compile")
"""What ``config.yaml`` holds that makes no setting of its own: the seed, and how the same is computed."""

LEVEL = 0.95
"""Of the intervals: Student's t over the seeds."""

UNITS = {"%": r"(.+\.)?(linear|knn)|few_labels\.(mean|std)", "×100": r"(.+\.)?stsb_dev"}
"""What a table shows a hundred times as large, as the commands that train do: accuracies, and a rank correlation."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its settings, and its numbers by name."""

    path: Path
    settings: Mapping[str, Any]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, which differ in nothing but their seeds."""

    values: Mapping[str, Any]
    """What tells this setting from the others."""
    runs: tuple[Run, ...]

    def interval(self, figure: str) -> tuple[float, float]:
        """Mean over the seeds and half the width of its 95 % confidence interval; NaN for a single seed."""
        return interval([run.figures[figure] for run in self.runs if figure in run.figures])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of the 95 % confidence interval by Student's t; NaN where one value, or none, is known.

    Example:
        >>> interval([0.70, 0.72, 0.74])
        (0.72, 0.0497...)

    """
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    from scipy.stats import t

    quantile = float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean(values), quantile * stdev(values) / math.sqrt(len(values))


def read(path: Path) -> Run:
    """A run as it lies on the disk.

    Raises:
        RunDirectoryError: there is no such folder, or it holds no run.
        CheckpointError: the run is not finished.

    """
    if not path.exists():
        raise RunDirectoryError(f"there is no folder {str(path)!r}.{runs_beside(path)}")
    directory = RunDirectory.at(path) if path.is_dir() else None
    settings = None if directory is None else directory.settings()
    if directory is None or settings is None:
        raise RunDirectoryError(f"{str(path)!r} is no run directory: there is no config.yaml in it.")
    result = directory.finished()
    if result is None:
        raise CheckpointError(
            f"{str(path)!r} is not finished: there is no result.json. Go on with it by --resume, or leave it out."
        )
    init, seed = settings.get("init"), settings.get("seed")
    if isinstance(init, str):  # of a sweep: each seed begins with the run of the same seed
        settings = {**settings, "init": re.sub(rf"(?<=-seed){seed}(?=/?$)", "*", init)}
    return Run(path, settings, dict(numbers(result)))


def numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a result by name; those inside of another by both names with a dot between."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def group(runs: Sequence[Run], by: Sequence[str] = (), free: Collection[str] = ()) -> list[Setting]:
    """The settings among some runs, in the order in which they come.

    Args:
        runs: of one kind, images or text.
        by: what tells the settings apart; by default everything in which the runs differ. With ``"seed"`` among
            them each run has a row.
        free: settings that do not change what is computed; runs may differ in them.

    Raises:
        ConfigError: ``by`` names no setting, or leaves out one in which runs of a group differ; two runs have the same
            settings and the same seed; or the runs are of different kinds.

    """
    runs = one_spelling(runs)
    kept = {*NOT_COMPARED, *free}
    names = list(dict.fromkeys(name for run in runs for name in run.settings if name not in kept))
    for run in runs[1:]:
        if ("from_config" in run.settings) != ("from_config" in runs[0].settings):
            raise ConfigError(f"{str(run.path)!r} and {str(runs[0].path)!r} are runs on text and on images.")
    differing = [
        name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    ]
    for name in by:
        if name not in (*names, "seed"):
            told = did_you_mean(name, names) or f" They differ in {', '.join(differing) or 'no setting'}."
            raise ConfigError(f"no setting of these runs is called {name!r}.{told}")
    shown = list(by) or differing
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run, shown), []).append(run)
    for members in found.values():
        _check_alike(members, differing)
    return [Setting({n: m[0].settings.get(n) for n in shown}, tuple(m)) for m in found.values()]


def one_spelling(runs: Sequence[Run]) -> list[Run]:
    """The runs, with one spelling of sites that are the same by their plans: ``4`` and ``layer4`` of a ResNet."""
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    found = []
    for run in runs:
        if sites := _planned(run.settings):
            spelled = first.setdefault(sites, run.settings)
            said = {name: spelled[name] for name in ("at", "rates") if name in spelled}
            run = replace(run, settings={**run.settings, **said})
        found.append(run)
    return found


def _planned(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The sites as the plan in ``config.yaml`` has them, with what is done there where each has a rate of its own."""
    resolved = settings.get("resolved")
    plan = resolved.get("plan") if isinstance(resolved, Mapping) else None
    if not settings.get("at") or not isinstance(plan, str):
        return ()
    done = r"\n +(.*)" if settings.get("rates") else ""
    return tuple(
        match[0] for match in re.finditer(rf"^  site +(\S.*?)  \(as .*\){done}$", plan, re.MULTILINE)
    )


def _key(run: Run, names: Sequence[str]) -> str:
    return json.dumps([run.settings.get(name) for name in names], default=str)


def _check_alike(runs: Sequence[Run], differing: Sequence[str]) -> None:
    """Refuse a mean over different settings, and one over a run and its copy."""
    seeds: dict[Any, Run] = {}
    for run in runs:
        other = [name for name in differing if run.settings.get(name) != runs[0].settings.get(name)]
        if other:
            raise ConfigError(
                f"{str(run.path)!r} and {str(runs[0].path)!r} differ in {', '.join(other)} too: there is no mean over "
                f"both. Add to --by: {','.join(other)}."
            )
        twin = seeds.setdefault(run.settings.get("seed"), run)
        if twin is not run:
            raise ConfigError(
                f"{str(run.path)!r} and {str(twin.path)!r} have the same settings and the same seed: leave one out."
            )


def figures_of(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[str]:
    """The numbers to show: the wanted ones, else those in which the runs differ, or all but spreads within a run.

    Raises:
        ConfigError: a wanted one is in no run.

    """
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    for name in wanted:
        if name not in names:
            told = did_you_mean(name, names) or f" There are {', '.join(names)}."
            raise ConfigError(f"no result of these runs is called {name!r}.{told}")
    shown = [name for name in names if not name.endswith(".std")]
    moving = [name for name in shown if len({run.figures.get(name) for run in runs}) > 1]
    return list(wanted) or moving or shown


def unit_of(figure: str) -> str:
    """The one of `UNITS` that a number of a ``result.json`` is shown in, or an empty string."""
    return next((unit for unit, names in UNITS.items() if re.fullmatch(names, figure)), "")


def table(
    settings: Sequence[Setting],
    figures: Sequence[str],
    width: int | None = None,
    unit: Callable[[str], str] = unit_of,
) -> str:
    """One row a setting: what tells it from the others, how many seeds, and each figure as mean ± interval.

    ``unit``: the one of `UNITS` that a figure is shown in, or an empty string.
    """
    columns = [
        Column(name, tuple(_spelled(s.values[name]) for s in settings), cut="end")
        for name in settings[0].values
    ]
    columns.append(Column("seeds", tuple(str(len(s.runs)) for s in settings)))
    for rank, figure in enumerate(figures):
        scale, title = (100, f"{figure} ({unit(figure)})") if unit(figure) else (1, figure)
        cells = tuple(_shown(*(scale * value for value in s.interval(figure))) for s in settings)
        columns.append(Column(title, cells, rank))
    lines = render(columns, width)
    if any(len(s.runs) > 1 for s in settings):
        lines.append("± half the 95 % confidence interval over seeds (Student's t)")
    return "\n".join(lines)


def _spelled(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _shown(middle: float, half: float) -> str:
    if math.isnan(middle):
        return ""
    if math.isnan(half) or half == 0:
        return f"{middle:.4g}{'' if math.isnan(half) else ' ± 0'}"
    # as many digits as the interval leaves, two of its own
    places = max(0, 1 - math.floor(math.log10(half)))
    return f"{middle:.{places}f} ± {half:.{places}f}" if places <= 6 else f"{middle:.4g} ± {half:.2g}"
