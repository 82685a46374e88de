"""One run of a sweep: trained, probed, carried over; what came of it is written down, also where it diverged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphaug.contrastive.runs.compare import numbers
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.files import make_folder, write_json
from graphaug.errors import RunDirectoryError, TrainingCollapsed, TrainingDiverged
from graphaug.recipes.runs.kinds import kind_of

OUTCOME = "outcome.json"
"""Of a run that is done: nothing is computed again where it lies."""


@dataclass(frozen=True)
class Job:
    """A run: its setting, its settings (see `kind_of`), its directory, and the data to carry the encoder over to.

    ``begins_with``: the directory of the run whose weights it begins with; ``looks``: what else is asked of it.
    """

    setting: str
    config: Any
    out: Path
    transfer: str | None = None
    transfer_epochs: int = 0
    begins_with: Path | None = None
    looks: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    ``figures``: accuracies in [0, 1] and correlations in [-1, 1] by name, none where it diverged; ``seconds``: of the
    training; ``diverged``: what was said of it; ``failed``: what kept the run from its end, which is tried again.
    """

    figures: Mapping[str, float]
    seconds: float = 0.0
    diverged: str | None = None
    failed: str | None = None


def make(job: Job) -> Outcome:
    """Make a run, or go on with it; of one that is done the outcome is read."""
    try:
        return read(job) or _make(job)
    except Exception as error:  # of whatever kind: out of memory, a full disk; it ends no other run
        return Outcome({}, failed=f"{type(error).__name__}: {error}")


def read(job: Job) -> Outcome | None:
    """What came of a run that is done; None if it is not.

    Raises:
        ConfigError: the run has other settings.
        RunDirectoryError: its outcome is damaged.

    """
    RunDirectory.at(job.out).check_settings(type(job.config), _settings(job).to_dict())
    return outcome_in(job.out)


def _settings(job: Job) -> Any:
    """The settings of a run; of one that begins with another's weights, with the way to them as it was called before.

    The run beside it is meant, however the sweep's directory is spelled, and wherever it was moved since.
    """
    there = RunDirectory.at(job.out).settings()
    if job.begins_with is None or there is None or there.get("init") is None:
        return job.config
    return replace(job.config, init=there["init"])


def _begin_anew(job: Job) -> None:
    """Remove a run that has nothing to go on from: without checkpoints, or the weights that it was to begin with."""
    run = RunDirectory.at(job.out)
    settings = run.settings() or {}
    before = settings.get("init")
    moved = job.begins_with is not None and before is not None and not Path(before).exists()
    without = settings.get("checkpoint_every") == 0 and run.finished() is None
    if (moved and run.begins_again()) or without:
        shutil.rmtree(job.out)


def outcome_in(folder: Path) -> Outcome | None:
    """What is written down of the run of a directory; None if nothing.

    Raises:
        RunDirectoryError: it is damaged.

    """
    file = folder / OUTCOME
    try:
        return Outcome(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(
            f"{str(file)!r} is damaged: {error}. Remove it to read the run again."
        ) from error


def _make(job: Job) -> Outcome:
    kind = kind_of(job.config)
    if job.begins_with is not None:
        first = outcome_in(job.begins_with)
        if first is not None and first.diverged:  # so has what would begin with its weights
            return _kept(job, Outcome({}, diverged=f"it begins with a run that diverged: {first.diverged}"))
    _begin_anew(job)
    try:
        result, metrics = kind.train(_settings(job), job.out)
    except (TrainingDiverged, TrainingCollapsed) as error:
        outcome = Outcome({}, diverged=f"{type(error).__name__}: {error}")
    else:
        figures = dict(numbers(result))
        if job.transfer is not None:
            carried = kind.carry_over(job.config, job.out, job.transfer, job.transfer_epochs)
            figures |= {f"transfer.{name}": value for name, value in carried.items()}
        if job.looks is not None:
            figures |= {f"{job.looks}.{n}": v for n, v in kind.look(job.config, job.out, job.looks).items()}
        outcome = Outcome(figures, round(sum(line["seconds"] for line in metrics), 1))
    return _kept(job, outcome)


def _kept(job: Job, outcome: Outcome) -> Outcome:
    make_folder(job.out)
    write_json(job.out / OUTCOME, asdict(outcome), indent=2)
    return outcome
