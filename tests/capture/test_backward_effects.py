"""What opened code does to the backward alone is refused; in a closed module it is the model's. Oracle: the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)


class HooksOfANode(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if h.grad_fn is not None:
            h.grad_fn.register_prehook(lambda grads: tuple(3 * g for g in grads))
        return self.last(h)


class SavedOtherwise(Base):
    def forward(self, x: Tensor) -> Tensor:
        with saved_tensors_hooks(lambda t: t, lambda t: 2 * t):
            h = torch.tanh(self.first(x))
        return self.last(h)


class SavedElsewhere(Base):
    def forward(self, x: Tensor) -> Tensor:
        with save_on_cpu():
            h = torch.tanh(self.first(x))
        return self.last(h)


EFFECTS = [HooksOfANode, SavedOtherwise, SavedElsewhere]


@pytest.mark.parametrize("cls", EFFECTS)
def test_opened_it_is_refused(cls: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match=r"backward"):
        ga.rewrite(cls(), at="first", example_inputs=torch.randn(4, 8))


@pytest.mark.few(1)
@pytest.mark.parametrize("cls", EFFECTS)
def test_closed_it_is_the_models(cls: type[nn.Module]) -> None:
    model, x = nn.Sequential(cls(), nn.Linear(8, 3)), torch.randn(4, 8)
    aug = ga.rewrite(model, at="1", rate=0.0, example_inputs=x)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(aug(x).square().sum(), list(model.parameters()))
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e)


class AsksForModes(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if torch.are_deterministic_algorithms_enabled():
            h = h * 2
        if torch.get_float32_matmul_precision() == "medium":
            h = h * 3
        if torch.get_autocast_dtype("cpu") is torch.float16:
            h = h * 5
        return self.last(h + torch.ones((), dtype=torch.get_default_dtype()).to(h.dtype))


def test_switches_of_torch_that_opened_code_asks_for_are_assumptions() -> None:
    model, x = AsksForModes(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(AssumptionViolated, match="deterministic"):
            aug(x)
    finally:
        torch.use_deterministic_algorithms(False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(AssumptionViolated, match="precision"):
            aug(x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(aug(x), model(x))
