"""A user's program, typed: ``make lint`` checks it with mypy --strict, and a test runs it.

`assert_type` is an error of the checker where a public name has lost its type, or has become ``Any``.
"""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.contrastive.losses import info_nce, nt_xent


class Net(nn.Module):
    """Two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 8)`` to ``(N, 4)``."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def train(model: nn.Module, at: str | int, steps: int = 2) -> float:
    """A few steps of a loop of the user's; the last loss."""
    aug = ga.rewrite(model, at, rate=0.5, subset=0.5, stop_grad=True, example_inputs=torch.randn(4, 8))
    optimizer = torch.optim.SGD(aug.parameters(), lr=0.1)
    loss = torch.zeros(())
    for _ in range(steps):
        z1, z2 = aug(torch.randn(8, 8)).chunk(2)
        loss = assert_type(nt_xent(z1, z2, temperature=0.5), Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_type(ga.strip(aug), nn.Module)
    return loss.item()


def where(model: nn.Module) -> list[str]:
    """The sites of a model, by path."""
    found = assert_type(ga.sites(model), ga.Sites)
    first = assert_type(found[0], ga.Site)
    assert_type(found[1:], ga.Sites)
    assert_type(first.stage, int | None)
    return [assert_type(site.path, str) for site in found if site.separates]


def refused(model: nn.Module) -> str:
    """What an error says."""
    try:
        ga.rewrite(model, "no such layer")
    except ga.GraphaugError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def main() -> None:
    """Use every kind of public name once."""
    model = Net()
    aug = ga.rewrite(model, "layers.1", example_inputs=torch.randn(4, 8))
    assert_type(aug, ga.AugmentedModule)
    print(ga.verify(aug, torch.randn(4, 8)))
    ga.strip(aug)
    at = {"layers.0": ga.Noise(0.1, subset=1.0), "layers.1": ga.Mix(alpha=1.0, stop_grad=True)}
    mixed = assert_type(ga.rewrite(model, at, transform=None), ga.AugmentedModule)
    mixed.set("layers.0", sigma=0.2)
    mixed(torch.randn(4, 8))
    print(assert_type(mixed.drawn["layers.1"], ga.Drawn).rows)
    ga.rewrite(model, "layers.1", transform=torch.tanh)
    print(ga.tap(model, ["layers.0"])(torch.randn(4, 8)))
    print(train(model, "layers.0"), where(model), refused(model))
    drop = ga.DeepAugment(rate=0.5, subset=1.0)
    rows = assert_type(drop.train(), ga.DeepAugment)(torch.randn(4, 8))
    print(info_nce(rows, torch.randn(4, 8)))


if __name__ == "__main__":
    main()
