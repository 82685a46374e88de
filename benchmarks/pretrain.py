"""Views per second of contrastive training, data pipeline included: lightly, a plain loop, and ours.

    python -m benchmarks.pretrain [--batch 256] [--steps 4] [--rounds 3] [--images 2048] [--workers 0]
                                  [--device cpu|cuda] [--precision 32-true|bf16-mixed] [--compile] [--json FILE]

One process and the same ResNet-18 for CIFAR, images, batch and precision for all; the contenders take turns,
``--steps`` steps each per round, and medians over the rounds are reported. lightly is its SimCLR tutorial's loop
(transform, data loader, loss); the plain loop is in SupContrast's style (PIL transforms, data loader, eager). Ours is
the library's engine. The shares are those of a step of ours, run eagerly and timed part by part.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.views import MEAN, STD
from graphaug.contrastive.config import PretrainConfig
from graphaug.contrastive.data import ImageData, ImageSet
from graphaug.contrastive.devices import make_fabric
from graphaug.contrastive.job import build_engine, deep_augmented
from graphaug.contrastive.losses import nt_xent
from graphaug.contrastive.models import build_model, classifier_path, projection_head

Steps = Callable[[int], None]
"""Makes so many training steps."""

SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, layer4 dense": {"at": ("layer4",), "stop_grad": True, "backward": "dense"},
    "ours, layer4 two streams": {"at": ("layer4",), "stop_grad": True, "backward": "sparse"},
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


def ours(data: ImageData, config: PretrainConfig) -> Steps:
    """The engine, as `graphaug pretrain` sets it up."""
    fabric = make_fabric(1, config.accelerator, config.precision)
    model = network(config.model).to(fabric.device)
    context = deep_augmented(model, config, data)
    engine = build_engine(fabric, context.__enter__(), config, data)
    engine.objective.train()

    def run(steps: int) -> None:
        engine.feed.start_epoch()
        for step in range(steps):
            engine._step(0.0, step % engine.feed.steps)

    run.context = context  # type: ignore[attr-defined]  # what leaves it would take the augmentation out again
    return run


def loaded(data: ImageData, transform: Any, config: PretrainConfig, workers: int) -> Iterator[Tensor]:
    """Batches of both views, stacked, for ever, from a data loader on PIL images."""
    from torchvision.transforms.functional import to_pil_image

    class Pictures(torch.utils.data.Dataset[Any]):
        pictures = tuple(to_pil_image(image) for image in data.train.images)

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> Any:
            return transform(self.pictures[index])

    loader = torch.utils.data.DataLoader(
        Pictures(), config.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=False
    )
    while True:
        for views in loader:
            yield torch.cat(list(views))


def plain(
    batches: Iterator[Tensor], config: PretrainConfig, loss: Callable[..., Tensor], device: str
) -> Steps:
    """An eager loop around a loss on two views."""
    model = network(config.model).to(device)
    optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=1e-4)

    def run(steps: int) -> None:
        for _ in range(steps):
            x = next(batches).to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=config.precision != "32-true"):
                z1, z2 = model(x).float().chunk(2)
            optimizer.zero_grad()
            loss(z1, z2).backward()
            optimizer.step()

    return run


def contenders(options: argparse.Namespace, data: ImageData) -> dict[str, tuple[Steps, int]]:
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from torchvision import transforms as t

    base = PretrainConfig(
        batch_size=options.batch, precision=options.precision, compile=options.compile,
        accelerator=options.device, channels_last=options.device == "cuda", collapse=0.0,
    )  # fmt: skip
    lightlys = SimCLRTransform(
        input_size=32, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD}
    )
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = [t.RandomResizedCrop(32, scale=(0.2, 1.0)), t.RandomHorizontalFlip()]
    single = t.Compose([*crop, jitter, t.RandomGrayscale(p=0.2), t.ToTensor(), t.Normalize(MEAN, STD)])
    found: dict[str, tuple[Steps, int]] = {}
    for name, transform, loss in (
        ("lightly", lightlys, NTXentLoss(0.5)),
        ("plain loop, PIL", lambda image: (single(image), single(image)), nt_xent),
    ):
        batches = loaded(data, transform, base, options.workers)
        found[name] = plain(batches, base, loss, options.device), options.batch
    for name, setting in SETTINGS.items():
        vit = "ViT" in name
        if options.only and not any(word in name for word in options.only):
            continue
        batch = min(options.batch, 16) if vit and options.device == "cpu" else options.batch
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

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times[name].append(time.perf_counter() - start)
        return result

    for step in range(options.steps):
        images, uniforms = timed("data", lambda step=step: next(iter(engine.feed.batches(step))))
        x = timed("views", lambda images=images, uniforms=uniforms: views(images, uniforms))

        def forward(x: Tensor = x) -> Tensor:
            with torch.autocast(options.device, torch.bfloat16, enabled=options.precision != "32-true"):
                z = model(x)
            return nt_xent(*z.float().chunk(2))

        loss = timed("forward and loss", forward)
        timed("backward", loss.backward)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {name: taken / sum(medians.values()) for name, taken in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"batch": 256, "steps": 4, "rounds": 3, "images": 2048, "workers": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="*", help="ours whose name holds one of these")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), generator=generator).to(torch.uint8)
    part = ImageSet(images, torch.arange(options.images) % 10)
    data = ImageData("random", part, part, tuple("0123456789"), 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contenders(options, data)
        times: dict[str, list[float]] = {name: [] for name in found}
        for run, _ in found.values():
            run(1)
        for _ in range(options.rounds):
            for name, (run, _) in found.items():
                start = time.perf_counter()
                run(options.steps)
                if options.device == "cuda":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - start)
        parts = shares(options, data)
    speed = {
        name: 2 * found[name][1] * options.steps / statistics.median(taken) for name, taken in times.items()
    }
    print(
        f"batch {options.batch}, {options.precision}, {options.device}, {torch.get_num_threads()} thread(s),",
        end=" ",
    )
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.processor()}")
    for name, rate in speed.items():
        print(f"{name:36} {rate:9.0f} views/s  {rate / speed['lightly']:6.2f}× lightly")
    print("a step of ours: " + ", ".join(f"{name} {share:.0%}" for name, share in parts.items()))
    if options.json:
        settings = {k: str(v) for k, v in vars(options).items()}
        options.json.write_text(
            json.dumps({"settings": settings, "views_per_second": speed, "parts": parts}, indent=2)
        )


if __name__ == "__main__":
    main()
