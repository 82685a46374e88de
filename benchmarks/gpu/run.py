"""The steps of `run.sh`, each a command in a process of its own with its share of the time and a log of its own.

    python -m benchmarks.gpu.run [--only STEP ...] [--minutes 25] [--out DIR] [--cifar DIR] [--rehearse]

A step's result is a JSON file in ``--out`` (its outcome, seconds, and what it measured); a step that has one is not run
again unless it failed, so that a second half hour goes on where the first ended.

Compiling takes most of the time: on an H200 with 16 cores ten minutes of a half hour, one thing after another. So it is
done first, in two lots, everything in a lot at once; then each step runs alone, with the kernels that are there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import torch

from benchmarks.gpu.steps import STEPS, Step

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


def missing(step: Step, cifar: Path | None, rehearse: bool) -> str:
    """What a step lacks on this machine, in words; empty if nothing."""
    lacking = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    if step.name == "cifar" and not rehearse and (cifar is None or not (cifar / "train").is_dir()):
        return "needs --cifar, a folder with train/ and test/"
    return ""


def environment(rehearse: bool) -> dict[str, str]:
    """Of a step's process: where compiled kernels are kept, and whether it is for real."""
    kernels = Path(tempfile.gettempdir()) / "graphaug-kernels"
    more = {"GRAPHAUG_REHEARSE": "1"} if rehearse else {"TORCHINDUCTOR_CACHE_DIR": str(kernels)}
    return {**os.environ, **more}


def begin(command: list[str], log: IO[str], where: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command in a group of processes of its own."""
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=where, start_new_session=True
    )


def end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait so long; what the process returned, or None: then it was ended, with all that it had started."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def compile_all(steps: list[Step], options: argparse.Namespace, seconds: float) -> None:
    """Run what compiles, all of a lot at once, for at most so many seconds a lot; what fails here fails later, too."""
    for wave in sorted({step.wave for step in steps} - {0}):
        begun, running = time.perf_counter(), []
        for step in (s for s in steps if s.wave == wave):
            with (options.out / f"{step.name}-compiling.log").open("w", encoding="utf-8") as log:
                command = [*step.gpu, *step.compiling]
                where = environment(rehearse=False)
                running.append(begin(command, log, where))
        for process in running:
            end(process, max(1.0, seconds - (time.perf_counter() - begun)))
        print(f"compiled lot {wave} in {time.perf_counter() - begun:.0f} s", flush=True)
    for step in steps:
        for file in step.writes:
            (RESULTS / file.format(name="compiling")).unlink(missing_ok=True)


def run(step: Step, options: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Run one step for at most so many seconds; its outcome, with the end of its output."""
    words = {"out": str(options.out.resolve()), "cifar": str(options.cifar)}
    command = [part.format(**words) for part in (step.tiny if options.rehearse else step.gpu)]
    start, began, log = time.perf_counter(), time.time(), options.out / f"{step.name}.log"
    with log.open("w", encoding="utf-8") as output:
        code = end(begin(command, output, environment(options.rehearse)), seconds)
    outcome = "ran out of time" if code is None else "done" if code == 0 else f"ended with {code}"
    name = "rehearsal" if options.rehearse else "gpu"
    for file in step.writes:
        path = RESULTS / file.format(name=name)
        if path.exists() and path.stat().st_mtime >= began:  # not one of an earlier run
            shutil.copy(path, options.out / path.name)
            if options.rehearse:
                path.unlink()
    return {
        "step": step.name,
        "what": step.what,
        "outcome": outcome,
        "seconds": round(time.perf_counter() - start, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "command": command,
        "said": log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:],
    }


def result_of(step: Step, options: argparse.Namespace) -> Path:
    path: Path = options.out / f"{step.name}.json"
    return path


def done(step: Step, options: argparse.Namespace) -> bool:
    """Whether it came to its end before."""
    try:
        found = json.loads(result_of(step, options).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # none, or one that was being written when all ended
        return False
    return bool(found["outcome"] == "done")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Everything worth measuring on a GPU, the most valuable first."
    )
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STEPS], default=[s.name for s in STEPS])
    parser.add_argument("--minutes", type=float, default=25, help="stop before so many are over")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--cifar", type=Path, default=None, help="CIFAR-10 as a folder of images")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at a tiny size")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU here; --rehearse runs the steps on the CPU at a tiny size")
    options.out.mkdir(parents=True, exist_ok=True)
    begun, table = time.perf_counter(), []
    if not options.rehearse:
        coming = [s for s in STEPS if s.name in options.only and not done(s, options)]
        compile_all([s for s in coming if not missing(s, options.cifar, False)], options, 6 * options.minutes)
    for step in (s for s in STEPS if s.name in options.only):
        left = 60 * options.minutes - (time.perf_counter() - begun)
        lacks = missing(step, options.cifar, options.rehearse)
        if done(step, options):
            table.append((step, "done before"))
        elif lacks:
            table.append((step, lacks))
        elif left < 30:
            table.append((step, "no time left"))
        else:
            print(f"{step.name}: {step.what}", flush=True)
            found = run(step, options, min(left - 10, 60 * step.minutes))
            result_of(step, options).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            table.append((step, f"{found['outcome']} after {found['seconds']} s"))
        print(f"    {table[-1][1]}", flush=True)
    width = max(len(step.name) for step, _ in table)
    print("\n".join(f"{step.name:<{width}}  {outcome}" for step, outcome in table))
    return int(any(o.startswith(("ended", "ran out")) for _, o in table))


if __name__ == "__main__":
    raise SystemExit(main())
