"""The steps of `run.sh`, each a command in a process of its own with its share of the time and a log of its own.

    python -m benchmarks.gpu.run [--only STEP ...] [--minutes 25] [--out DIR] [--cifar DIR] [--rehearse]

A step's result is a JSON file in ``--out`` (its outcome, seconds, and what it measured); a step that has one is not run
again unless it failed, so that a second half hour goes on where the first ended.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Attributes:
        name: for ``--only`` and the names of files.
        what: in a line, with what is hoped for.
        minutes: the most it may take.
        gpu, tiny: the command on a GPU, and on the CPU at a tiny size. ``{cifar}`` and ``{out}`` are filled in.
        needs: packages that it cannot do without.
        writes: files under benchmarks/results/ that hold its figures.
    """

    name: str
    what: str
    minutes: float
    gpu: tuple[str, ...]
    tiny: tuple[str, ...]
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = field(default=())


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


STEP = ("--modes", "compiled", "--depths", "1", "--subsets", "0.5", "--rounds", "21", "--without-hook")

STEPS = (
    Step(
        "tests", "the core's tests on the GPU", 5,
        module("pytest", "-q", "-m", "cuda", "tests/cuda"),
        module("pytest", "-q", "-m", "cuda", "tests/cuda", "-p", "no:cacheprovider"),
        ("pytest",),
    ),
    Step(
        "step", "ViT-S, a step in bf16: sparse within 10 % of its floor, dense at most 1.02 of plain", 5,
        module("benchmarks.step", "--device", "cuda", "--name", "gpu", "--models", "vit-s", "--batch", "512", *STEP),
        module("benchmarks.step", "--device", "cpu", "--name", "rehearsal", "--batch", "2", "--modes", "eager",
               "--models", "vit-s", "--depths", "1", "--subsets", "0.5", "--rounds", "1", "--eager-rounds", "1"),
        ("transformers", "matplotlib", "timm"), ("step-{name}.json",),
    ),
    Step(
        "step-text", "the same of a BERT-base, of 32 tokens", 5,
        module("benchmarks.step", "--device", "cuda", "--name", "gpu", "--models", "bert-base", "--batch", "1024",
               *STEP),
        module("benchmarks.step", "--device", "cpu", "--name", "rehearsal", "--batch", "2", "--modes", "eager",
               "--models", "bert-base", "--depths", "1", "--subsets", "0.5", "--rounds", "1", "--eager-rounds", "1"),
        ("transformers", "matplotlib"), ("step-{name}.json",),
    ),
    Step(
        "deep-views", "deep views in bf16, at most 0.58 of the step with both copies; skipped rows", 5,
        module("benchmarks.deep_views", "--device", "cuda", "--name", "gpu", "--batch", "256", "--rows", "512",
               "--precision", "bf16", "--models", "vit-s", "--rounds", "15"),
        module("benchmarks.deep_views", "--device", "cpu", "--name", "rehearsal", "--batch", "2", "--rows", "3",
               "--models", "vit-s", "--rounds", "1", "--no-compile"),
        ("timm",), ("deep-views-{name}.json",),
    ),
    Step(
        "pretrain", "SimCLR, ResNet-18 at CIFAR's size, the whole pipeline: 60,000 views a second", 6,
        module("benchmarks.pretrain", "--device", "cuda", "--name", "gpu", "--precision", "bf16-mixed", "--compile",
               "--batch", "512", "--images", "16384", "--steps", "20", "--only", "lightly",
               "plain loop, PIL, compiled", "ours", "ours, layer4 two streams", "ours, ViT-S"),
        module("benchmarks.pretrain", "--device", "cpu", "--name", "rehearsal", "--batch", "4", "--images", "16",
               "--steps", "1", "--rounds", "1", "--workers", "0", "--only", "ours"),
        ("lightning_fabric", "sklearn"), ("pretrain-{name}.json",),
    ),
    Step(
        "views", "views alone: a million a second at 32 pixels, ten times kornia at 224", 4,
        module("benchmarks.views", "--device", "cuda", "--name", "gpu", "--batch", "4096", "--only", "ours",
               "ours, compiled", "kornia"),
        module("benchmarks.views", "--device", "cpu", "--name", "rehearsal", "--batch", "4", "--rounds", "1",
               "--sizes", "32", "--no-compile"),
        (), ("views-{name}.json",),
    ),
    Step(
        "text", "SimCSE on a BERT-base shape: 1.5 of sentence-transformers' sentences a second", 5,
        module("benchmarks.text_step", "--device", "cuda", "--precision", "bf16-mixed", "--batch", "256",
               "--name", "gpu"),
        module("benchmarks.text_step", "--device", "cpu", "--size", "bert-tiny", "--batch", "4", "--steps", "1",
               "--rounds", "1", "--at", "1", "--name", "rehearsal"),
        ("sentence_transformers", "datasets", "accelerate", "lightning_fabric"), ("text-step-{name}.json",),
    ),
    Step(
        "cifar", "CIFAR-10, SimCLR to 90 % kNN in 10 minutes; resumed by the next call", 12,
        module("graphaug", "pretrain", "--out", "{out}/cifar", "--data", "folder:{cifar}", "--model", "resnet18-cifar",
               "--at", "layer4", "--batch-size", "1024", "--epochs", "100", "--precision", "bf16-mixed", "--compile",
               "--watch-every", "5", "--resume"),
        module("graphaug", "pretrain", "--out", "{out}/cifar", "--data", "digits", "--model", "resnet18-cifar:8",
               "--at", "layer4", "--epochs", "1", "--accelerator", "cpu", "--force"),
        ("lightning_fabric", "typer", "sklearn"),
    ),
)  # fmt: skip


def missing(step: Step, cifar: Path | None, rehearse: bool) -> str:
    """What a step lacks on this machine, in words; empty if nothing."""
    lacking = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    if step.name == "cifar" and not rehearse and (cifar is None or not (cifar / "train").is_dir()):
        return "needs --cifar, a folder with train/ and test/"
    return ""


def run(step: Step, options: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Run one step for at most so many seconds; its outcome, with the end of its output."""
    words = {"out": str(options.out.resolve()), "cifar": str(options.cifar)}
    command = [part.format(**words) for part in (step.tiny if options.rehearse else step.gpu)]
    environment = {**os.environ, "GRAPHAUG_REHEARSE": "1"} if options.rehearse else dict(os.environ)
    start, log = time.perf_counter(), options.out / f"{step.name}.log"
    with log.open("w", encoding="utf-8") as output:
        try:
            code: int | None = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    outcome = "ran out of time" if code is None else "done" if code == 0 else f"ended with {code}"
    name = "rehearsal" if options.rehearse else "gpu"
    for file in step.writes:
        path = RESULTS / file.format(name=name)
        if path.exists():
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
    for step in (s for s in STEPS if s.name in options.only):
        path = options.out / f"{step.name}.json"
        left = 60 * options.minutes - (time.perf_counter() - begun)
        lacks = missing(step, options.cifar, options.rehearse)
        if path.exists() and json.loads(path.read_text())["outcome"] == "done":
            table.append((step, "done before"))
        elif lacks:
            table.append((step, lacks))
        elif left < 30:
            table.append((step, "no time left"))
        else:
            print(f"{step.name}: {step.what}", flush=True)
            found = run(step, options, min(left - 10, 60 * step.minutes))
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            table.append((step, f"{found['outcome']} after {found['seconds']} s"))
        print(f"    {table[-1][1]}", flush=True)
    width = max(len(step.name) for step, _ in table)
    print("\n".join(f"{step.name:<{width}}  {outcome}" for step, outcome in table))
    return int(any(o.startswith(("ended", "ran out")) for _, o in table))


if __name__ == "__main__":
    raise SystemExit(main())
