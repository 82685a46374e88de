"""What each of two processes does in the test of methods over devices; imported by the processes themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from gloo import group_of_two
from torch import Tensor, nn

from graphaug.vision.config import PretrainConfig
from graphaug.vision.methods.table import METHODS

METHOD_NAMES = ("supcon", "barlow", "vicreg", "moco")
PAIRS, WIDTH, STEPS = 8, 6, 3
LABELS = torch.tensor([0, 1, 0, 2, 2, 1, 0, 0])


class Step(nn.Module):
    """A network without batch statistics, its method, and a step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(WIDTH, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 5))
        queue = {"queue": 20} if name == "moco" else {}
        config = PretrainConfig(
            method=name, projection=5, hidden=4, batch_size=PAIRS, temperature=0.5, **queue
        )
        self.method = METHODS[name](self.network, **{n: getattr(config, n) for n in METHODS[name].settings})

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.method(self.network, x, labels)["loss"]


def train(name: str, rows: slice, wrap: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Some steps of SGD on some of the pairs; the losses, and everything that a checkpoint would hold."""
    step = Step(name).train()
    forward = nn.parallel.DistributedDataParallel(step) if wrap else step
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], 0.05)
    losses = []
    for number in range(STEPS):
        views = torch.randn(2, PAIRS, WIDTH, generator=torch.Generator().manual_seed(1 + number))
        optimizer.zero_grad()
        loss = forward(views[:, rows].flatten(0, 1), LABELS[rows])
        loss.backward()
        optimizer.step()
        step.method.after_step(step.network, number / STEPS)
        losses.append(float(loss.detach()))
    return losses, step.state_dict()


def run(rank: int, folder: str) -> None:
    """Half of the pairs in each of two processes."""
    with group_of_two(rank, folder):
        for name in METHOD_NAMES:
            half = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
            torch.save(train(name, half, True), Path(folder) / f"{name}_{rank}.pt")
