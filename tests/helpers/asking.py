"""Models whose forward scales by what it asks something for, and whether a change of that is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

NAME = "GRAPHAUG_TESTS_ASK"
"""A name that nothing else has: of a variable, a file, a module."""


class Asks(nn.Module):
    """A forward that scales by what it asks for."""

    def __init__(self, asks: Callable[[Any], float]) -> None:
        super().__init__()
        self.first, self.last, self.asks = nn.Linear(4, 4), nn.Linear(4, 4), asks
        self.name = NAME

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * self.asks(self))


class TwoInputs(nn.Module):
    """A forward that has a function of another file tell its inputs apart."""

    def __init__(self, tells: Callable[[Tensor, Tensor], float]) -> None:
        super().__init__()
        self.first, self.last, self.tells = nn.Linear(4, 4), nn.Linear(4, 4), tells

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last((self.first(x) + y) * self.tells(x, y))


def rewritten(model: nn.Module) -> tuple[Any, Tensor]:
    x = torch.randn(4, 4)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    return aug, x


def check_noticed(aug: Any, x: Tensor, change: Callable[[], Any]) -> None:
    """After a change that the model follows a call raises, in a copy as well."""
    before, copied = aug.original(x), copy.deepcopy(aug)
    change()
    assert not torch.equal(aug.original(x), before)
    for one in (aug, copied):
        with pytest.raises(AssumptionViolated, match="Call rewrite again"):
            one(x)
