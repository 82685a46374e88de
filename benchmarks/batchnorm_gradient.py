"""How far the gradient of two streams through BatchNorm is from the dense one.

    python -m benchmarks.batchnorm_gradient [--steps 60] [--batch 32] [--draws 4]

One model, one SimCLR batch, the same stopped rows and the same dropout on both sides: the forward is the
same, and the gradients differ by what stopped rows would have received through the batch statistics.
Cosine and ratio of norms per stage, means over draws of batch and rows, at initialisation and after a short
training with Deep Augmentation at that cut on the digits.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphaug
from benchmarks.coverage import ROOT, write
from benchmarks.oracle import Masks, imposed
from graphaug.contrastive.losses import nt_xent
from graphaug.vision.data.images import load
from graphaug.vision.models import build_model, classifier_path, projection_head, to_rgb
from graphaug.vision.views.pipeline import UNIFORMS, SimCLRViews

CUTS = ("layer2", "layer3", "layer4")
SUBSET = RATE = 0.5


def batches(rows: int, seed: int) -> Iterator[Tensor]:
    """Endless SimCLR batches of digits at 16×16: two views of ``rows`` images, one below the other."""
    data = load("digits")
    mean, std = data.statistics()
    views = SimCLRViews(data.view_size, flip=0.0, mean=mean, std=std)
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randperm(len(data.train), generator=generator)[:rows]
        yield to_rgb(views(data.train.images[chosen], torch.rand(2 * rows, UNIFORMS, generator=generator)))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return nt_xent(*model(x).chunk(2), 0.5)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("resnet18-cifar")
    path = classifier_path(model)
    model.set_submodule(path, projection_head(model.get_submodule(path), 128))
    return model


def rewritten(model: nn.Module, cut: str, x: Tensor, backward: str) -> Any:
    return graphaug.rewrite(
        model, cut, rate=RATE, subset=SUBSET, stop_grad=True, backward=backward, example_inputs=x[:4]
    )


def gradients(aug: Any, x: Tensor, masks: Masks) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients under the given masks; the running statistics stay as they were."""
    before = copy.deepcopy(dict(aug.named_buffers()))
    aug.train()
    with imposed(next(iter(aug.augmentations.values())), masks):
        loss = loss_of(aug, x)
    named = dict(aug.named_parameters())
    found = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    for name, buffer in aug.named_buffers():
        buffer.copy_(before[name])
    return float(loss.detach()), found


def stage_of(name: str) -> str:
    first = name.partition(".")[0]
    return first if first.startswith("layer") else "stem" if first in ("conv1", "bn1") else "head"


def flat(grads: dict[str, Tensor], stage: str) -> Tensor:
    return torch.cat([g.flatten().double() for name, g in grads.items() if stage_of(name) == stage])


def compare(model: nn.Module, cut: str, rows: int, draws: int) -> dict[str, Any]:
    """Cosine and ratio of norms, sparse to dense, of every stage up to the cut and of all behind it."""
    stream = batches(rows, seed=1)
    sums: dict[str, list[tuple[float, float]]] = {}
    gap = 0.0
    for draw in range(draws):
        x = next(stream)
        masks = Masks(RATE, SUBSET, seed=draw)
        dense, sparse = (rewritten(model, cut, x, kind) for kind in ("dense", "sparse"))
        with torch.no_grad():  # the shape of the value at the cut, and the masks for it
            h = value_at(dense, x)
        masks.draw(h)
        loss, wanted = gradients(dense, x, masks)
        other, found = gradients(sparse, x, masks)
        gap = max(gap, abs(loss - other) / abs(loss))
        for stage in dict.fromkeys(map(stage_of, wanted)):
            a, b = flat(wanted, stage), flat(found, stage)
            ratio = float(b.norm() / a.norm())
            sums.setdefault(stage, []).append((float(torch.cosine_similarity(a, b, dim=0)), ratio))
    return {
        "loss_gap": gap,
        "stages": {
            stage: {
                "cosine": sum(c for c, _ in v) / len(v),
                "cosine_min": min(c for c, _ in v),
                "norm_ratio": sum(r for _, r in v) / len(v),
            }
            for stage, v in sums.items()
        },
    }


def value_at(aug: Any, x: Tensor) -> Tensor:
    """The value that enters the augmentation; running statistics stay as they were."""
    seen: list[Tensor] = []
    node = next(iter(aug.augmentations.values()))
    handle = node.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    before = copy.deepcopy(dict(aug.named_buffers()))
    aug.train()(x)
    handle.remove()
    for name, buffer in aug.named_buffers():
        buffer.copy_(before[name])
    return seen[0]


def train(model: nn.Module, cut: str, rows: int, steps: int) -> list[float]:
    """A short SimCLR training with dense Deep Augmentation at the cut; the loss of each step."""
    stream = batches(rows, seed=2)
    aug = rewritten(model, cut, next(stream), "dense").train()
    optimizer = torch.optim.SGD(aug.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)
    torch.manual_seed(3)
    losses = []
    for _ in range(steps):
        loss = loss_of(aug, next(stream))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each cut and moment, a column for each stage; the head is behind every cut."""
    stages = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    lines = [
        "| cut | moment | " + " | ".join(stages) + " | loss, relative gap |",
        "|---" * (len(stages) + 3) + "|",
    ]
    for r in records:
        cells = [f"{r['stages'][s]['cosine']:.3f} ({r['stages'][s]['norm_ratio']:.2f})" for s in stages]
        lines.append(f"| {r['cut']} | {r['moment']} | " + " | ".join(cells) + f" | {r['loss_gap']:.0e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Gradient of two-stream BatchNorm against the dense one.")
    parser.add_argument("--steps", type=int, default=60, help="of the short training")
    parser.add_argument("--batch", type=int, default=32, help="images; twice as many rows")
    parser.add_argument("--draws", type=int, default=4, help="batches and masks to average over")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/batchnorm_gradient.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records: list[dict[str, Any]] = []
    for cut in CUTS:
        model = network(seed=0)
        for moment, steps in (("initialisation", 0), (f"after {options.steps} steps", options.steps)):
            losses = train(model, cut, options.batch, steps) if steps else []
            found = compare(model, cut, options.batch, options.draws)
            records.append(
                {"cut": cut, "moment": moment, "losses": [losses[0], losses[-1]] if losses else [], **found}
            )
    settings = {
        "model": "resnet18-cifar",
        "data": "digits, 16×16",
        "rows": 2 * options.batch,
        "subset": SUBSET,
        "rate": RATE,
        "draws": options.draws,
        "steps": options.steps,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    write(options.out, json.dumps({"settings": settings, "records": records}, indent=1) + "\n")
    print("cosine (ratio of norms) of the gradient, two streams against dense\n")
    print(table(records))


if __name__ == "__main__":
    main()
