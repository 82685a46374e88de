"""What each of two processes does in the test of gathered negatives; imported by the processes themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gloo import group_of_two
from torch import Tensor, nn

import graphaug as ga
from benchmarks.oracle import Masks, imposed
from graphaug.contrastive.losses import LOSSES

PAIRS, WIDTH, SITE = 8, 6, "4"
CASES = [(loss, backward) for loss in LOSSES for backward in ("dense", "sparse")]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Linear(WIDTH, 10),
        nn.LayerNorm(10),
        nn.GELU(),
        nn.Linear(10, 12),
        nn.Tanh(),
        nn.Linear(12, 5),
    ]
    return nn.Sequential(*layers).double()


def views() -> Tensor:
    """``(2, PAIRS, WIDTH)``: first and second views of the whole batch."""
    return torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masks(rank: int) -> Masks:
    """The draws of one process at the cut: half of its rows."""
    drawn = Masks(0.5, 0.5, seed=10 + rank)
    drawn.draw(torch.zeros(PAIRS, 12, dtype=torch.float64))  # two views of half of the pairs
    return drawn


def joined() -> Masks:
    """The draws of both processes in the order of the whole batch [x1; x2]."""
    whole, parts = Masks(0.5, 0.5), [masks(0), masks(1)]
    for name in ("rows", "noise"):
        halves = [getattr(part, name).chunk(2) for part in parts]
        setattr(whole, name, torch.cat([half[view] for view in (0, 1) for half in halves]))
    return whole


def loss_of(model: Any, aug: Any, x: Tensor, drawn: Masks, loss: str, **options: Any) -> Tensor:
    (augmentation,) = aug.augmentations.values()
    with imposed(augmentation, drawn):
        return LOSSES[loss](*model(x.flatten(0, 1)).chunk(2), 0.5, **options)


def augmented(backward: str) -> Any:
    return ga.rewrite(network(), SITE, stop_grad=True, backward=backward, example_inputs=views()[0])


def whole(loss: str, backward: str) -> tuple[float, dict[str, Tensor]]:
    """One process with the whole batch."""
    aug = augmented(backward)
    found = loss_of(aug, aug, views(), joined(), loss)
    found.backward()
    return float(found.detach()), {name: p.grad for name, p in aug.named_parameters()}


def run(rank: int, folder: str) -> None:
    """Half of the pairs in each of two processes; saves loss and gradients."""
    with group_of_two(rank, folder):
        for loss, backward in CASES:
            aug = augmented(backward)
            ddp = nn.parallel.DistributedDataParallel(aug)
            mine = views().chunk(2, dim=1)[rank]
            found = loss_of(ddp, aug, mine, masks(rank), loss, gather=True)
            found.backward()
            grads = {name: p.grad for name, p in aug.named_parameters()}
            torch.save((float(found.detach()), grads), Path(folder) / f"{loss}_{backward}_{rank}.pt")
