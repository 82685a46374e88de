"""Views per second of contrastive training, data pipeline included: lightly, a plain loop, and ours.

    python -m benchmarks.pretrain [--batch N] [--steps 3] [--rounds 3] [--images 2048] [--workers N]
                                  [--device cpu|cuda] [--precision 32-true|bf16-mixed] [--compile] [--cuda-graphs]
                                  [--only NAME ...] [--name NAME]

One process and the same ResNet-18 for CIFAR, images, batch and precision for all; the contenders take turns,
``--steps`` steps each per round behind one that is not timed, and medians over the rounds are reported. lightly is the
loop of its SimCLR example (transform, data loader, a forward for each view, loss); the plain loop is in SupContrast's
style (PIL transforms, data loader, one forward), with ``--compile`` once more with a compiled model, channels last on
a GPU. Their pictures are decoded beforehand, and their loaders have ``--workers`` processes, by default one for each
core, which are stopped at the end of a turn; what they made before the clock started is used up first. Ours is the
library's engine, with its own memory format and fused optimizer on a GPU. The ViTs are compared with themselves. On a
GPU the batch is 256, and at most that for a ViT; on a CPU 32, and 8 for a ViT: a larger one only takes longer. The
shares are those of a step of ours, run eagerly and timed part by part; the optimizer is left out of them. Results go to
``benchmarks/results/pretrain-NAME.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage import ROOT, write
from benchmarks.step import machine
from benchmarks.views import MEAN, STD, versions
from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.devices import make_fabric
from graphaug.contrastive.losses import nt_xent
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.job import build_engine
from graphaug.vision.models import build_model, classifier_path, projection_head
from graphaug.vision.trial import example_images

Steps = Callable[[int], float]
"""Makes a training step, and then so many that are timed: the seconds these took."""

Batch = tuple[Tensor, Tensor]
"""The first and the second views."""

SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, layer4 dense": {"at": ("layer4",), "stop_grad": True, "backward": "dense"},
    "ours, layer4 two streams": {"at": ("layer4",), "stop_grad": True, "backward": "sparse"},
    "ours, ViT-S": {"model": "timm:vit_small_patch16_224"},
    "ours, ViT-Ti": {"model": "timm:vit_tiny_patch16_224"},
    "ours, ViT-Ti block 11 of 12 sparse": {
        "model": "timm:vit_tiny_patch16_224", "at": ("11",), "stop_grad": True, "backward": "sparse",
    },
}  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name)
    path = classifier_path(model)
    model.set_submodule(path, projection_head(model.get_submodule(path)))
    return model


def timed(step: Callable[[], object], steps: int, device: torch.device, untimed: int = 1) -> float:
    for _ in range(untimed):
        step()
    start = clock(device)
    for _ in range(steps):
        step()
    return clock(device) - start


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(data: ImageData, config: PretrainConfig) -> Steps:
    """The engine, as `graphaug pretrain` sets it up."""
    fabric = make_fabric(1, config.accelerator, config.precision)
    model = network(config.model).to(fabric.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    size = config.size or data.view_size
    context = deep_augmented(model, config, lambda: example_images(model, size), config.model)
    engine = build_engine(fabric, context.__enter__(), config, data)
    engine.objective.train()

    def run(steps: int) -> float:
        engine.feed.start_epoch()
        numbers = itertools.cycle(range(engine.feed.steps))
        return timed(lambda: engine._step(0.0, next(numbers)), steps, fabric.device)

    run.context = context  # type: ignore[attr-defined]  # what leaves it would take the augmentation out again
    return run


def loader(data: ImageData, transform: Any, config: PretrainConfig, workers: int) -> Any:
    """Batches of both views from a data loader on PIL images."""
    from torchvision.transforms.functional import to_pil_image

    class Pictures(torch.utils.data.Dataset[Any]):
        pictures = tuple(to_pil_image(image) for image in data.train.images)

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> Any:
            return transform(self.pictures[index])

    return torch.utils.data.DataLoader(
        Pictures(),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=config.accelerator == "cuda",
    )


def forever(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    while True:
        yield from batches


def by_loader(
    batches: Any,
    config: PretrainConfig,
    embed: Callable[[nn.Module, Batch], Batch],
    loss: Callable[..., Tensor],
    compiled: bool = False,
) -> Steps:
    """A loop around a loss on two views, eager or with a compiled model."""
    device = torch.device(config.accelerator)
    model = network(config.model).to(device)
    if compiled:
        model = model.to(
            memory_format=torch.channels_last if config.channels_last else torch.contiguous_format
        )
        model = torch.compile(model, fullgraph=True)  # type: ignore[assignment]
    optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=1e-4)

    def step(coming: Iterator[Batch]) -> None:
        x1, x2 = (x.to(device, non_blocking=True) for x in next(coming))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision != "32-true"):
            z1, z2 = embed(model, (x1, x2))
        optimizer.zero_grad()
        loss(z1.float(), z2.float()).backward()
        optimizer.step()

    def run(steps: int) -> float:
        coming = forever(batches)
        # A loader is ahead by two batches a worker, which come at about one time: one such lot passes, one is timed.
        lot = 2 * batches.num_workers
        count = max(steps, lot) if steps else 1
        try:
            return timed(lambda: step(coming), count, device, max(1, lot if steps else 0)) / count * steps
        finally:
            coming.close()  # and with it the workers, which would go on during the others' turns

    return run


def one_by_one(model: nn.Module, views: Batch) -> Batch:
    return model(views[0]), model(views[1])


def together(model: nn.Module, views: Batch) -> Batch:
    z1, z2 = model(torch.cat(views)).chunk(2)
    return z1, z2


def contenders(options: argparse.Namespace, data: ImageData) -> dict[str, tuple[Steps, int]]:
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from torchvision import transforms as t

    base = PretrainConfig(
        batch_size=options.batch, precision=options.precision, compile=options.compile,
        accelerator=options.device, channels_last=options.device == "cuda", cuda_graphs=options.cuda_graphs,
    )  # fmt: skip
    lightlys = SimCLRTransform(
        input_size=32, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD}
    )
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = [t.RandomResizedCrop(32, scale=(0.2, 1.0)), t.RandomHorizontalFlip()]
    single = t.Compose([*crop, jitter, t.RandomGrayscale(p=0.2), t.ToTensor(), t.Normalize(MEAN, STD)])
    found: dict[str, tuple[Steps, int]] = {}
    wanted = lambda name: not options.only or name in options.only  # noqa: E731
    both = lambda image: (single(image), single(image))  # noqa: E731
    for name, transform, embed, loss in (
        ("lightly", lightlys, one_by_one, NTXentLoss(0.5)),
        ("plain loop, PIL", both, together, nt_xent),
        ("plain loop, PIL, compiled", both, together, nt_xent),
    ):
        compiled = name.endswith("compiled")
        if wanted(name) and (options.compile or not compiled):
            batches = loader(data, transform, base, options.workers)
            found[name] = by_loader(batches, base, embed, loss, compiled), options.batch
    for name, setting in SETTINGS.items():
        vit = "ViT" in name
        if not wanted(name):
            continue
        batch = min(options.batch, 8 if options.device == "cpu" else 256) if vit else options.batch
        config = replace(base, batch_size=batch, size=224 if vit else 32, **setting)
        found[name] = ours(data, config), batch
    return found


def shares(options: argparse.Namespace, data: ImageData) -> dict[str, float]:
    """The parts of a step of ours, as shares of their sum; eagerly, as a compiled step has no seams."""
    config = PretrainConfig(batch_size=options.batch, size=32, accelerator=options.device)
    fabric = make_fabric(1, options.device, options.precision)
    engine = build_engine(fabric, network(config.model).to(fabric.device), config, data)
    engine.feed.start_epoch()
    views, model = engine.objective.views, engine.objective.network
    times: dict[str, list[float]] = {"data": [], "views": [], "forward and loss": [], "backward": []}

    def part(name: str, call: Callable[[], Any]) -> Any:
        start = clock(fabric.device)
        result = call()
        times[name].append(clock(fabric.device) - start)
        return result

    for step in range(1 + options.steps):
        images, uniforms = part("data", lambda step=step: next(iter(engine.feed.batches(step))))
        x = part("views", lambda images=images, uniforms=uniforms: views(images, uniforms))

        def forward(x: Tensor = x) -> Tensor:
            with torch.autocast(options.device, torch.bfloat16, enabled=options.precision != "32-true"):
                z = model(x)
            return nt_xent(*z.float().chunk(2))

        loss = part("forward and loss", forward)
        part("backward", loss.backward)
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    return {name: taken / sum(medians.values()) for name, taken in medians.items()}


def table(speed: dict[str, float]) -> str:
    lines = []
    for name, rate in speed.items():
        reference = name.split(" block")[0] if "ViT" in name else "lightly"
        ratio = f"{rate / speed[reference]:5.2f}× {reference}" if reference in speed else ""
        lines.append(f"{name:36} {rate:9.1f} views/s  {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"batch": 0, "steps": 3, "rounds": 3, "images": 2048}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of each data loader")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--cuda-graphs", action="store_true", help="ours")
    parser.add_argument("--only", nargs="*", help="of the contenders")
    parser.add_argument("--name", default=None, help="of the machine, for the result file")
    options = parser.parse_args()
    options.batch = options.batch or (256 if options.device == "cuda" else 32)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), generator=generator).to(torch.uint8)
    part = ImageSet(images, torch.arange(options.images) % 10)
    data = ImageData("random", part, part, tuple("0123456789"), 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contenders(options, data)
        times: dict[str, list[float]] = {name: [] for name in found}
        for run, _ in found.values():
            run(0)
        for _ in range(options.rounds):
            for name, (run, _) in found.items():
                times[name].append(run(options.steps))
        parts = shares(options, data)
    speed = {
        name: 2 * found[name][1] * options.steps / statistics.median(taken) for name, taken in times.items()
    }
    threads = torch.get_num_threads()
    print(f"batch {options.batch}, {options.precision}, {options.device}, {threads} thread(s), ", end="")
    print(f"{options.workers} worker(s) for the loaders, {machine(options.device)['name']}")
    print(table(speed))
    print("a step of ours: " + ", ".join(f"{name} {share:.1%}" for name, share in parts.items()))
    name = options.name or ("gpu" if options.device == "cuda" else f"cpu{os.cpu_count()}")
    settings = {k: v for k, v in vars(options).items() if k not in ("name", "only")}
    results = {
        "machine": machine(options.device),
        "versions": versions(),
        "settings": {**settings, "threads": threads},
        "views_per_second": {name: round(rate, 1) for name, rate in speed.items()},
        "seconds": {name: [round(seconds, 3) for seconds in taken] for name, taken in times.items()},
        "shares": {name: round(share, 4) for name, share in parts.items()},
    }
    write(ROOT / "benchmarks/results" / f"pretrain-{name}.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
