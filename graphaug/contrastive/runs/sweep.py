"""Many runs: processes of this machine by joblib, or jobs of Slurm by submitit; results as they come."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from graphaug.errors import ConfigError, LaunchError, did_you_mean

T = TypeVar("T")
R = TypeVar("R")

KINDS = ("local", "slurm")

_WATCH = 1.0
"""Seconds between two looks at whether the sweep's process is still there."""


@dataclass(frozen=True)
class Executor:
    """Where the runs of a sweep are made.

    joblib serves on one machine: submitit's local executor starts all of its jobs at once.

    Args:
        kind: ``"local"`` or ``"slurm"``.
        workers: runs at a time. Locally each has one thread; with 1, this process makes them.
        partition: of Slurm.
        hours: after which Slurm ends a run.
        folder: for submitit's files.

    Raises:
        ConfigError: no such kind, no workers, a partition without Slurm, or submitit is not installed.

    """

    kind: str = "local"
    workers: int = 1
    partition: str | None = None
    hours: float = 24.0
    folder: Path = Path("slurm")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS)
            raise ConfigError(f"no executor is called {self.kind!r}.{hint} There are {', '.join(KINDS)}.")
        if self.workers < 1 or not self.hours > 0:
            raise ConfigError(f"workers={self.workers!r}, hours={self.hours!r}: both have to be positive.")
        if self.kind == "slurm":
            _submitit()
        elif self.partition is not None:
            raise ConfigError("a partition is Slurm's: give executor='slurm' (--executor slurm) with it.")

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """``(number of the item, function(item))`` for every item, in the order in which they are done.

        The function has to be importable by its name, and takes and returns what can be pickled. What it raises ends
        the sweep.

        Raises:
            LaunchError: a worker was killed, or a job of Slurm ended without a result.

        """
        return self._slurm(function, items) if self.kind == "slurm" else self._local(function, items)

    def _local(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        from joblib import Parallel, delayed

        call = delayed(_numbered)
        jobs = (call(function, number, item, os.getpid()) for number, item in enumerate(items))
        # joblib starts fresh processes: torch's threads would not survive a fork.
        try:
            yield from Parallel(self.workers, backend="loky", return_as="generator_unordered")(jobs)
        except BrokenProcessPool as error:
            raise LaunchError(
                f"a worker of the sweep was killed. If memory ran out, take fewer than {self.workers} workers: {error}"
            ) from error

    def _slurm(
        self, function: Callable[[T], R], items: Sequence[T], cluster: str = "slurm"
    ) -> Iterator[tuple[int, R]]:
        submitit = _submitit()
        executor = submitit.AutoExecutor(folder=self.folder, cluster=cluster)
        executor.update_parameters(
            name="graphaug", timeout_min=round(60 * self.hours), slurm_array_parallelism=self.workers
        )
        if self.partition is not None:
            executor.update_parameters(slurm_partition=self.partition)
        jobs = executor.map_array(function, list(items))
        numbers = {job.job_id: number for number, job in enumerate(jobs)}
        for job in submitit.helpers.as_completed(jobs):
            try:
                result = job.result()
            except submitit.core.utils.UncompletedJobError as error:
                raise LaunchError(f"job {job.job_id} of the sweep gave no result: {error}") from error
            yield numbers[job.job_id], result


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as missing:
        raise ConfigError("runs on Slurm need submitit: pip install 'graphaug[slurm]'.") from missing
    return submitit


def _numbered(function: Callable[[T], R], number: int, item: T, sweep: int) -> tuple[int, R]:
    """Call on one thread: small networks gain little from a second, and lose all of it when something else runs."""
    import torch
    from threadpoolctl import threadpool_limits

    _end_with(sweep)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return number, function(item)
    finally:
        torch.set_num_threads(threads)


def _end_with(sweep: int) -> None:
    """In a worker: end when the sweep is killed. A run that went on would hold its directory against the next one."""
    if os.getpid() == sweep or any(t.name == _end_with.__name__ for t in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, name=_end_with.__name__, daemon=True).start()
