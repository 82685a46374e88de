"""What `run.sh` measures, in order."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Attributes:
        name: for ``--only`` and the names of files.
        what: in a line, with what is hoped for.
        minutes: the most it may take.
        gpu, tiny: the command on a GPU, and on the CPU at a tiny size. ``{cifar}`` and ``{out}`` are filled in.
        needs: packages that it cannot do without.
        writes: files that hold its figures, from benchmarks/results/.
        wave: which of the two lots it is compiled with before anything is measured, all of a lot at once; 0 for none.
            What is in a lot shares the GPU's memory.
        compiling: what is added to ``gpu`` for that.
    """

    name: str
    what: str
    minutes: float
    gpu: tuple[str, ...]
    tiny: tuple[str, ...]
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    wave: int = 0
    compiling: tuple[str, ...] = ("--rounds", "1", "--name", "compiling")


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


PICTURE = "../../docs/images/step-{name}.svg"
STEP = ("--device", "cuda", "--name", "gpu", "--modes", "compiled", "--depths", "1", "--subsets", "0.5",
        "--rounds", "21", "--without-hook", "--cached")  # fmt: skip
TINY_STEP = ("--device", "cpu", "--name", "rehearsal", "--batch", "2", "--modes", "eager", "--depths", "1",
             "--subsets", "0.5", "--rounds", "1", "--eager-rounds", "1")  # fmt: skip

STEPS = (
    Step(
        "tests", "the core's tests on the GPU", 5,
        module("pytest", "-q", "-m", "cuda", "tests/cuda"),
        module("pytest", "-q", "-m", "cuda", "tests/cuda", "-p", "no:cacheprovider"),
        ("pytest",),
    ),
    Step(
        "step", "ViT-S, a step in bf16: sparse within 10 % of its floor, dense at most 1.02 of plain", 5,
        module("benchmarks.step", "--models", "vit-s", "--batch", "512", *STEP),
        module("benchmarks.step", "--models", "vit-s", *TINY_STEP),
        ("transformers", "matplotlib", "timm"), ("step-{name}.json", PICTURE), 1,
    ),
    Step(
        "step-text", "the same of a BERT-base, of 32 tokens", 5,
        module("benchmarks.step", "--models", "bert-base", "--batch", "1024", *STEP),
        module("benchmarks.step", "--models", "bert-base", *TINY_STEP),
        ("transformers", "matplotlib"), ("step-{name}.json", PICTURE), 2,
    ),
    Step(
        "deep-views", "deep views in bf16, at most 0.58 of the step with both copies; skipped rows", 5,
        module("benchmarks.deep_views", "--device", "cuda", "--name", "gpu", "--batch", "256", "--rows", "512",
               "--precision", "bf16", "--models", "vit-s", "--rounds", "15"),
        module("benchmarks.deep_views", "--device", "cpu", "--name", "rehearsal", "--batch", "2", "--rows", "3",
               "--models", "vit-s", "--rounds", "1", "--no-compile"),
        ("timm",), ("deep-views-{name}.json",), 1,
    ),
    Step(
        "pretrain", "SimCLR, ResNet-18 at CIFAR's size, the whole pipeline: 60,000 views a second", 6,
        module("benchmarks.pretrain", "--device", "cuda", "--name", "gpu", "--precision", "bf16-mixed", "--compile",
               "--batch", "512", "--images", "16384", "--steps", "20", "--only", "lightly",
               "plain loop, PIL, compiled", "ours", "ours, layer4 two streams", "ours, ViT-S"),
        module("benchmarks.pretrain", "--device", "cpu", "--name", "rehearsal", "--batch", "4", "--images", "16",
               "--steps", "1", "--rounds", "1", "--workers", "0", "--only", "ours"),
        ("lightning_fabric", "sklearn"), ("pretrain-{name}.json",), 2,
        ("--rounds", "1", "--steps", "1", "--workers", "2", "--name", "compiling", "--only",
         "plain loop, PIL, compiled", "ours", "ours, layer4 two streams", "ours, ViT-S"),
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
        ("sentence_transformers", "datasets", "accelerate", "lightning_fabric"), ("text-step-{name}.json",), 1,
    ),
    Step(
        "cifar", "CIFAR-10, SimCLR to 90 % kNN in 10 minutes; resumed by the next call", 12,
        module("graphaug", "pretrain", "--out", "{out}/cifar", "--preset", "simclr-cifar10", "--data",
               "folder:{cifar}", "--batch-size", "512", "--lr", "0.3", "--epochs", "340", "--precision", "bf16-mixed",
               "--compile", "--channels-last", "--watch-every", "20", "--resume"),
        module("graphaug", "pretrain", "--out", "{out}/cifar", "--data", "digits", "--model", "resnet18-cifar:8",
               "--epochs", "1", "--accelerator", "cpu", "--force"),
        ("lightning_fabric", "typer", "sklearn"),
    ),
)  # fmt: skip
