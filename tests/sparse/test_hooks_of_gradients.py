"""Hooks on gradients that opened code registers, in front of a cut and behind it. Oracle: forward hooks (`verify`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import SparseBackwardError


def centred(gradient: Tensor) -> Tensor:
    return gradient - gradient.mean(0)


def always(model: nn.Module, h: Tensor) -> None:
    h.register_hook(centred)


def if_required(model: nn.Module, h: Tensor) -> None:
    if h.requires_grad:
        h.register_hook(centred)


def if_enabled(model: nn.Module, h: Tensor) -> None:
    if torch.is_grad_enabled():
        h.register_hook(centred)


def if_training(model: nn.Module, h: Tensor) -> None:
    if model.training:
        h.register_hook(centred)


class Hooks(nn.Module):
    def __init__(self, hook: Callable[[nn.Module, Tensor], None], behind: bool) -> None:
        super().__init__()
        self.first, self.cut, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.hook, self.behind = hook, behind

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if not self.behind:
            self.hook(self, h)
        h = self.cut(h.relu())
        if self.behind:
            h = self.last(h)
            self.hook(self, h)
            return h
        return self.last(h)


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize("hook", [always, if_required, if_enabled, if_training])
def test_a_hook_of_opened_code_acts(hook: Any, behind: bool) -> None:
    x = torch.randn(8, 6)
    aug = ga.rewrite(Hooks(hook, behind), "cut", stop_grad=True, example_inputs=x)
    assert "none of 4 parameters below has a gradient of the output" in str(ga.verify(aug, x))
    aug(x).sum().backward()


@pytest.mark.parametrize("hook", [always, if_required, if_enabled, if_training])
def test_in_front_of_a_cut_nothing_is_proved(hook: Any) -> None:
    with pytest.raises(SparseBackwardError, match="looks into its own backward"):
        ga.rewrite(
            Hooks(hook, False), "cut", stop_grad=True, backward="sparse", example_inputs=torch.randn(8, 6)
        )


def test_a_retained_gradient_is_there() -> None:
    class Retains(Hooks):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.first(x)
            self.kept.retain_grad()
            return self.last(self.cut(self.kept))

    model, x = Retains(always, False), torch.randn(8, 6)
    aug = ga.rewrite(model, "cut", rate=0.0, subset=0.0, stop_grad=True, example_inputs=x)
    kept = []
    for module in (aug, model):
        module(x).square().sum().backward()
        kept.append(model.kept.grad)
    torch.testing.assert_close(*kept)
