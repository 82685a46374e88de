"""benchmarks/gpu/run.sh is rehearsed on the CPU, so that the first minute on a GPU is not spent on a typing error."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.run import RESULTS, compile_all, done, run
from benchmarks.gpu.steps import STEPS, Step

ROOT = Path(__file__).parent.parent


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        [str(ROOT / "benchmarks/gpu/run.sh"), *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.long  # every step trains or times something in a process of its own
def test_every_step_runs_at_a_tiny_size_and_none_twice(tmp_path: Path) -> None:
    first = command("--rehearse", "--out", str(tmp_path))
    found = {step.name: json.loads((tmp_path / f"{step.name}.json").read_text()) for step in STEPS}
    assert all(f["outcome"] == "done" for f in found.values()), [
        (name, f["said"]) for name, f in found.items() if f["outcome"] != "done"
    ]
    assert first.returncode == 0
    again = command("--rehearse", "--out", str(tmp_path))
    assert again.stdout.count("done before") >= len(STEPS)


@pytest.mark.long
def test_what_is_missing_is_said(tmp_path: Path) -> None:
    unknown = command("--only", "everything")
    assert unknown.returncode == 2
    assert "invalid choice" in unknown.stderr
    assert command("--wheels", str(tmp_path / "none")).returncode == 2


@pytest.mark.long
def test_a_step_without_time_left_is_passed_over(tmp_path: Path) -> None:
    done = command("--rehearse", "--out", str(tmp_path), "--minutes", "0")
    assert done.returncode == 0
    assert done.stdout.count("no time left") >= len(STEPS)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.long
def test_what_compiles_is_started_together_and_ended_in_time(tmp_path: Path) -> None:
    def step(name: str, code: str, wave: int) -> Step:
        return Step(name, "", 1, (sys.executable, "-c", code), (), wave=wave, compiling=("more",))

    waits = "import sys, time; print(sys.argv[1:], flush=True); time.sleep(600)"
    steps = [step("a", waits, 1), step("b", waits, 1), step("c", "import sys; print(sys.argv[1:])", 2)]
    begun = time.perf_counter()
    compile_all([*steps, step("none", waits, 0)], argparse.Namespace(out=tmp_path), seconds=5)
    assert time.perf_counter() - begun < 60  # one after another they would take twenty minutes
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert logs == {f"{name}-compiling.log": "['more']\n" for name in "abc"}


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(out=folder, cifar=None, rehearse=True)


@pytest.mark.long
def test_a_step_that_runs_out_of_time_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    inner = "import time; time.sleep(600)"
    code = (
        f"import subprocess, sys; inner = subprocess.Popen([sys.executable, '-c', '{inner}']); "
        "print(inner.pid, flush=True); inner.wait()"
    )
    step = Step("slow", "", 1, (), (sys.executable, "-c", code))
    found = run(step, options(tmp_path), seconds=5)
    assert found["outcome"] == "ran out of time"
    state = Path(f"/proc/{(tmp_path / 'slow.log').read_text().strip()}/stat")
    time.sleep(1)
    assert not state.exists() or ") Z " in state.read_text()  # gone, or not yet collected


def test_a_result_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    earlier = RESULTS / "step-rehearsal-of-a-test.json"
    earlier.write_text("{}")
    try:
        step = Step("fails", "", 1, (), (sys.executable, "-c", "raise SystemExit(3)"), writes=(earlier.name,))
        os.utime(earlier, (0, 0))
        assert run(step, options(tmp_path), seconds=30)["outcome"] == "ended with 3"
        assert not (tmp_path / earlier.name).exists()
    finally:
        earlier.unlink(missing_ok=True)


def test_a_half_written_result_is_none(tmp_path: Path) -> None:
    step = Step("cut", "", 1, (), ())
    assert not done(step, options(tmp_path))
    (tmp_path / "cut.json").write_text('{"outcome": "do')
    assert not done(step, options(tmp_path))
    (tmp_path / "cut.json").write_text('{"outcome": "done"}')
    assert done(step, options(tmp_path))
