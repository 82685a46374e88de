"""All runs of a figure in one directory: checked first, gone on with after a kill, never repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from graphaug.contrastive.config.settings import Settings
from graphaug.contrastive.runs.files import make_folder, only_one, write_json
from graphaug.contrastive.runs.progress import duration
from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, RunDirectoryError
from graphaug.recipes.plan import Plan, Setting
from graphaug.recipes.runs.job import Job, Outcome, make, read
from graphaug.recipes.runs.kinds import Kind, kind_of

SWEEP = "sweep.json"
"""What a directory of runs is of: the figure, its settings, its data and its seeds."""

LOCK = ".sweep.lock"

Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By setting and seed."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """A figure's runs.

    Args:
        figure: its name.
        plan: its settings.
        out: the directory.
        seeds: runs of each setting.
        transfer_epochs: of the fine-tuning on other data.

    """

    figure: str
    plan: Plan
    out: Path
    seeds: int
    transfer_epochs: int = 30

    @property
    def jobs(self) -> list[Job]:
        """Every run, seed by seed, so that a sweep that is not done yet has whole seeds."""
        return [self._job(s, seed) for seed in range(self.seeds) for s in self.plan.settings]

    def _job(self, setting: Setting, seed: int) -> Job:
        config = replace(setting.config, seed=seed)
        first = None if setting.begins_with is None else self._folder(setting.begins_with, seed)
        return Job(
            setting.name,
            config if first is None else replace(config, init=str(first)),
            self._folder(setting.name, seed),
            setting.transfer,
            0 if setting.transfer is None else self.transfer_epochs,
            first,
            setting.looks,
        )

    def _folder(self, name: str, seed: int) -> Path:
        return self.out / self.plan.folder(name, seed)

    def check(self) -> None:
        """Refuse what cannot be run, or does not belong to what the directory holds; nothing is written.

        Raises:
            ConfigError: fewer than one seed, or a directory with a sweep of other settings, data or more seeds.
            RunDirectoryError: it holds another figure's sweep, or other files.
            DataError: data are missing.
            GraphaugError: what ``graphaug.rewrite`` raises about a site.

        """
        if self.seeds < 1:
            raise ConfigError(f"a sweep needs a seed or more, not {self.seeds}.")
        earlier = self._earlier()
        if earlier is not None:
            _compare_settings(self.out, earlier, self._identity(earlier["data"]), self._kind.settings)
        self._kind.check([s.config for s in self.plan.settings])
        data = self._facts
        if earlier is not None:
            _compare_settings(self.out, earlier, self._identity(data), self._kind.settings)

    def run(self, executor: Executor, say: Say) -> dict[str, dict[int, Outcome]]:
        """Make every run that is not done, and give the outcomes of all.

        Args:
            executor: where they are made.
            say: told of what is there, and of each run that is done, with the time that is left.

        Raises:
            RunDirectoryError: another process runs this sweep.

        """
        make_folder(self.out)
        with only_one(self.out / LOCK):
            write_json(self.out / SWEEP, self._identity(self._facts), indent=2)
            outcomes: dict[str, dict[int, Outcome]] = {s.name: {} for s in self.plan.settings}
            left = []
            for job in self.jobs:
                if (found := read(job)) is None:
                    left.append(job)
                else:
                    outcomes[job.setting][job.config.seed] = found
            done = total = len(self.jobs)
            done -= len(left)
            if done:
                say(f"{done} of {total} runs are done already")
            start = time.monotonic()
            for count, (job, outcome) in enumerate(_made(executor, left), 1):
                outcomes[job.setting][job.config.seed] = outcome
                rest = (time.monotonic() - start) / count * (len(left) - count)
                say(
                    f"[{done + count}/{total}] {job.setting}, seed {job.config.seed}: {self._said(outcome)}; "
                    f"{duration(rest)} left"
                )
        return outcomes

    def _said(self, outcome: Outcome) -> str:
        if outcome.failed or outcome.diverged:
            return f"{'FAILED' if outcome.failed else 'DIVERGED'}: {outcome.failed or outcome.diverged}"
        return self.plan.spoken(outcome.figures)

    @property
    def _kind(self) -> Kind:
        return kind_of(self.plan.settings[0].config)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What tells the data from others, which are read for it once; too few for a batch are refused."""
        found = {}
        for setting in self.plan.settings:
            name = self._kind.data(setting.config)
            if name not in found:
                found[name] = self._kind.facts(setting.config)
        for setting in self.plan.settings:
            spec = setting.transfer
            if spec is not None and spec not in found:
                found[spec] = self._kind.facts_of_other(setting.config, spec)
        return found

    def _identity(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "seeds": self.seeds,
            "data": dict(data),
            "transfer_epochs": self.transfer_epochs,
            "settings": {s.name: {**s.config.to_dict(), "transfer": s.transfer} for s in self.plan.settings},
        }

    def _earlier(self) -> dict[str, Any] | None:
        """What the directory holds, None if nothing."""
        file = self.out / SWEEP
        try:
            if self.out.exists() and not self.out.is_dir():
                raise RunDirectoryError(f"{str(self.out)!r} is a file, not a directory for a sweep.")
            if not file.exists():
                if self.out.is_dir() and any(p.name != LOCK for p in self.out.iterdir()):
                    raise RunDirectoryError(
                        f"{str(self.out)!r} holds other files, and no sweep. Choose another directory."
                    )
                if (above := next(p for p in self.out.absolute().parents if p.exists())).is_file():
                    raise RunDirectoryError(f"{str(self.out)!r} cannot be written: {str(above)!r} is a file.")
                return None
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunDirectoryError(
                f"{str(self.out)!r} cannot be read: {error.strerror or error}."
            ) from error
        except ValueError as error:
            raise RunDirectoryError(f"{str(file)!r} is damaged: {error}.") from error
        if not _describes_a_sweep(found, self._identity({})):
            raise RunDirectoryError(f"{str(file)!r} is damaged: it does not describe a sweep.")
        if found["figure"] != self.figure:
            raise RunDirectoryError(
                f"{str(self.out)!r} holds the runs of {found['figure']}, not of {self.figure}. Choose another "
                "directory."
            )
        return found


def _made(executor: Executor, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Runs as they are done: first those that begin with no other's weights, then those that do."""
    for wave in (
        [j for j in jobs if j.begins_with is None],
        [j for j in jobs if j.begins_with is not None],
    ):
        for number, outcome in executor.map(make, wave):
            yield wave[number], outcome


def _describes_a_sweep(found: Any, like: Mapping[str, Any]) -> bool:
    """Whether what a file holds has the entries of a sweep's description, each of its kind."""
    if not isinstance(found, dict) or not all(type(found.get(name)) is type(v) for name, v in like.items()):
        return False
    return all(isinstance(v, dict) for part in ("data", "settings") for v in found[part].values())


def _compare_settings(
    out: Path, old: Mapping[str, Any], new: Mapping[str, Any], settings: type[Settings]
) -> None:
    """Refuse a sweep that differs from what is there, but in more seeds."""
    found = []
    if old["seeds"] > new["seeds"]:
        found.append(f"seeds: {old['seeds']} → {new['seeds']} (more can be added, none left out)")
    if old["transfer_epochs"] != new["transfer_epochs"]:
        found.append(f"transfer_epochs: {old['transfer_epochs']!r} → {new['transfer_epochs']!r}")
    found += [
        f"{fact} of {spec}: {was!r} → {new['data'][spec].get(fact)!r}"
        for spec in old["data"].keys() & new["data"].keys()
        for fact, was in old["data"][spec].items()
        if new["data"][spec].get(fact) != was
    ]
    before, after = old["settings"], new["settings"]
    found += [f"{name}: {'gone' if name in before else 'new'}" for name in before.keys() ^ after.keys()]
    changes: dict[str, list[str]] = {}
    for name in before.keys() & after.keys():
        for change in settings.differences(
            {k: v for k, v in before[name].items() if k != "transfer"}, after[name]
        ):
            changes.setdefault(change, []).append(name)
    found += [
        f"{c}" + (f" ({', '.join(sorted(n))})" if len(n) < len(after) else "") for c, n in changes.items()
    ]
    if found:
        raise ConfigError(
            f"the sweep in {str(out)!r} has other settings:\n    " + "\n    ".join(sorted(found)) + "\n"
            "Go on with it without changing them, or choose another directory."
        )
