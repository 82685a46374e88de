"""Checks of data in a forward: the rewritten model raises where the model does, in every form of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Finite(nn.Module):
    """A layer that wants finite numbers, as the models of transformers check sizes and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all_with(ValueError, x.isfinite(), lambda: f"{x.sum()} is not finite")
        torch._check(x.shape[0] > 0)
        return self.layer(x)


class Checking(nn.Module):
    """The same in the code that is opened."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.first, self.second, self.check = nn.Linear(4, 4), nn.Linear(4, 4), check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x < 100)
        return self.second(torch.tanh(self.first(x)))


TOO_LARGE: Any = (
    (lambda: "too large") if torch.__version__.startswith("2.11") else "too large"
)  # which takes no text

CHECKS = {
    "a check of a tensor": torch._check_tensor_all,
    "with an error": lambda cond: torch._check_tensor_all_with(ValueError, cond, TOO_LARGE),
    "with a message that is made": lambda cond: torch._check_tensor_all(cond, lambda: f"{cond.sum()} rows"),
}


@pytest.mark.parametrize("backward", ["sparse", "dense"])
@pytest.mark.parametrize("name", CHECKS)
def test_opened_code_checks_in_every_call(name: str, backward: Any) -> None:
    model, x = Checking(CHECKS[name]), torch.randn(6, 4)
    aug = ga.rewrite(model, "first", stop_grad=True, backward=backward, example_inputs=x)
    ga.verify(aug, x)
    for training in (True, False):
        model.train(training)
        aug.train(training)
        with pytest.raises((RuntimeError, ValueError)):
            model(x + 1000)
        with pytest.raises((RuntimeError, ValueError)):
            aug(x + 1000)
    assert torch.equal(aug(x), model(x))


def test_a_closed_module_may_check() -> None:
    model, x = nn.Sequential(Finite(), nn.Linear(4, 4), Finite()), torch.randn(6, 4)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse"
    ga.verify(aug, x)
    with pytest.raises(ValueError, match="is not finite"):
        aug(x / 0)
    assert ga.rewrite(model, "0", dry_run=True).sites  # where the examples are found, too


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_it_compiles_whole(name: str) -> None:
    x = torch.randn(6, 4)
    aug = ga.rewrite(Checking(CHECKS[name]), "first", stop_grad=True, example_inputs=x)
    torch.compile(aug, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert aug.second.weight.grad is not None
