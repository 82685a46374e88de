"""Views per second of SimCLR's augmentation: ours, lightly's, kornia's, torchvision's, taking turns in one run.

    python -m benchmarks.views [--batch 256] [--size 32] [--rounds 5] [--device cpu|cuda] [--compile]

All make the same views of the same random uint8 images: crop with scale 0.2 to 1, flip, jitter .4/.4/.4/.1 with
probability .8, gray .2, normalisation, no blur. lightly and torchvision work on PIL images one by one in this process,
as their data loaders' workers do; kornia and ours on the batch. A library that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphaug.contrastive.views import SimCLRViews

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
    return lambda: [single(images.float() / 255) for _ in range(2)]


def contenders(images: Tensor, size: int, compiled: bool) -> dict[str, Make]:
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
        try:
            found[name] = make()
        except ImportError as missing:
            print(f"{name} is left out: {missing}")
    return found


def seconds(make: Make, device: str) -> float:
    start = time.perf_counter()
    make()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (options.batch, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(options.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contenders(images, options.size, options.compile)
        times: dict[str, list[float]] = {name: [] for name in found}
        for make in found.values():
            make()
        for _ in range(options.rounds):
            for name, make in found.items():
                times[name].append(seconds(make, options.device))
    print(
        f"{2 * options.batch} views of {options.size}×{options.size}, {torch.get_num_threads()} thread(s), "
        f"{options.device}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    base = statistics.median(times["ours"])
    for name, taken in times.items():
        median = statistics.median(taken)
        low, high = min(taken), max(taken)
        print(
            f"{name:18} {2 * options.batch / median:9.0f} views/s  "
            f"({2 * options.batch / high:.0f} to {2 * options.batch / low:.0f}); ours is {median / base:.2f}× as fast"
        )


if __name__ == "__main__":
    main()
