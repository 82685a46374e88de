"""Executors: every item once and in any order, Slurm's way by submitit, and no worker that outlives its sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, LaunchError


def square(x: int) -> int:
    return x * x


def threads(_: int) -> int:
    return torch.get_num_threads()


def broken(x: int) -> int:
    raise ValueError(f"item {x}")


def test_one_worker_is_this_process_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert dict(Executor().map(threads, [0, 1])) == {0: 1, 1: 1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert dict(Executor().map(square, [3, 4, 5])) == {0: 9, 1: 16, 2: 25}
    assert not list(Executor().map(square, []))
    with pytest.raises(ValueError, match="item 7"):
        list(Executor().map(broken, [7]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "slrm"}, "no executor is called 'slrm'. Did you mean 'slurm'"),
        ({"workers": 0}, "have to be positive"),
        ({"partition": "gpu"}, "is Slurm's"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Executor(**options)  # type: ignore[arg-type]


def test_slurm_without_submitit_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"graphaug\[slurm\]"):
        Executor("slurm")


@pytest.mark.long
def test_jobs_of_submitit_give_what_the_function_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By submitit's local cluster: Slurm itself is not here."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    executor = Executor("slurm", workers=2, partition="gpu", folder=tmp_path)
    assert dict(executor._slurm(square, [3, 4], cluster="local")) == {0: 9, 1: 16}


def killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_a_worker_that_is_killed_is_told_of() -> None:
    with pytest.raises(LaunchError, match="fewer than 2 workers"):
        list(Executor(workers=2).map(killed, [0, 1]))


SWEEP = """
import os, sys, time
from graphaug.contrastive.runs.sweep import Executor

def wait(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(600)

if __name__ == "__main__":
    list(Executor(workers=2).map(wait, [sys.argv[1]] * 2))
"""


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_workers_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP)
    told = tmp_path / "told"
    told.mkdir()
    sweep = subprocess.Popen([sys.executable, script, told])
    try:
        deadline = time.monotonic() + 300
        while len(list(told.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = [int(p.name) for p in told.iterdir()]
        assert len(workers) == 2
        assert sweep.pid not in workers
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(running, workers))
