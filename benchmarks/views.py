"""Views per second of SimCLR's augmentation: ours, lightly's, kornia's, torchvision's, taking turns in one run.

    python -m benchmarks.views [--sizes 32 224] [--batch 256] [--rounds 7] [--threads 1] [--device cpu|cuda]
                               [--no-compile] [--only NAME ...] [--name NAME]

All make the same views of the same random uint8 images: crop with scale 0.2 to 1, flip, jitter .4/.4/.4/.1 with
probability .8, gray .2, normalisation, no blur. lightly and torchvision work on PIL images one by one in this process,
as their data loaders' workers do; kornia and ours on the batch (a quarter of it above 64 pixels). With one thread, the
default, the numbers are those of one core: its time spent for this process, to which a busy machine adds little. Each
runs twice in its turn, and the second run counts: the first one pays for the memory that another has given back. A
library that is not installed is left out and named. Results go to ``benchmarks/results/views-NAME.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage import ROOT, write
from benchmarks.step import machine
from graphaug.vision.views.pipeline import SimCLRViews

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
Make = Callable[[], Any]
"""Makes two views of every image of the batch."""


def ours(images: Tensor, size: int, compiled: bool) -> Make:
    views = SimCLRViews(size, mean=MEAN, std=STD).to(images.device)
    call: Any = torch.compile(views, fullgraph=True) if compiled else views
    return lambda: call(images)


def one_by_one(transform: Any, images: Tensor) -> Make:
    from torchvision.transforms.functional import to_pil_image

    pictures = [to_pil_image(image) for image in images.cpu()]
    return lambda: [transform(picture) for picture in pictures]


def lightly(images: Tensor, size: int) -> Make:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        input_size=size,
        cj_strength=0.5,
        min_scale=0.2,
        gaussian_blur=0.0,
        normalize={"mean": MEAN, "std": STD},
    )
    return one_by_one(transform, images)


def torchvision_pil(images: Tensor, size: int) -> Make:
    from torchvision import transforms as t

    single = t.Compose(
        [
            t.RandomResizedCrop(size, scale=(0.2, 1.0)),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            t.RandomGrayscale(p=0.2),
            t.ToTensor(),
            t.Normalize(MEAN, STD),
        ]
    )
    return one_by_one(lambda picture: (single(picture), single(picture)), images)


def kornia(images: Tensor, size: int) -> Make:
    from kornia import augmentation as k

    single = torch.nn.Sequential(
        k.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        k.RandomHorizontalFlip(),
        k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
        k.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    ).to(images.device)
    # Each sample has its own draw (same_on_batch is False). One call with both views takes a little longer than two.
    return lambda: [single(images.float() / 255) for _ in range(2)]


def contenders(images: Tensor, size: int, compiled: bool, only: list[str] | None) -> dict[str, Make]:
    makers: dict[str, Callable[[], Make]] = {
        "ours": lambda: ours(images, size, False),
        "lightly": lambda: lightly(images, size),
        "torchvision, PIL": lambda: torchvision_pil(images, size),
        "kornia": lambda: kornia(images, size),
    }
    if compiled:
        makers = {"ours": makers["ours"], "ours, compiled": lambda: ours(images, size, True), **makers}
    found = {}
    for name, make in makers.items():
        if only and name not in only:
            continue
        try:
            found[name] = make()
        except ImportError as missing:
            print(f"{name} is left out: {missing}")
    return found


def seconds(make: Make, device: str, threads: int) -> float:
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    start = clock()
    make()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(images: Tensor, size: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Views per second of each: the median over the rounds, the slowest and the fastest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contenders(images, size, options.compile, options.only)
        times: dict[str, list[float]] = {name: [] for name in found}
        for make in found.values():
            make()
        for _ in range(options.rounds):
            for name, make in found.items():
                make()
                times[name].append(seconds(make, options.device, options.threads))
    count = 2 * len(images)
    return {
        name: {
            "views_per_second": round(count / statistics.median(taken), 1),
            "slowest": round(count / max(taken), 1),
            "fastest": round(count / min(taken), 1),
        }
        for name, taken in times.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    others = [name for name in ("lightly", "kornia") if name in rows]
    lines = [
        f"{'':18} {'views/s':>9}  {'slowest to fastest':>19}" + "".join(f"{'× ' + o:>11}" for o in others)
    ]
    for name, row in rows.items():
        speed = row["views_per_second"]
        spread = f"{row['slowest']:.0f} to {row['fastest']:.0f}"
        ratios = "".join(f"{speed / rows[other]['views_per_second']:11.2f}" for other in others)
        lines.append(f"{name:18} {speed:9.0f}  {spread:>19}{ratios}")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "lightly", "kornia", "pillow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", nargs="*", help="of the four, or with 'ours, compiled' five")
    parser.add_argument("--name", default=None, help="of the machine, for the result file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    name = options.name or ("gpu" if options.device == "cuda" else f"cpu{os.cpu_count()}")
    results = []
    for size in options.sizes:
        batch = options.batch if size <= 64 else max(1, options.batch // 4)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8).to(options.device)
        rows = measure(images, size, options)
        print(f"{2 * batch} views of {size}×{size}, {options.threads} thread(s), {options.device}")
        print(table(rows) + "\n", flush=True)
        results.append({"size": size, "views": 2 * batch, "rows": rows})
    settings = {"threads": options.threads, "rounds": options.rounds}
    found = {"machine": machine(options.device), "versions": versions(), **settings, "sizes": results}
    write(ROOT / "benchmarks/results" / f"views-{name}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
