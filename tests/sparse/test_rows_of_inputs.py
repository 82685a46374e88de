"""Rows taken of inputs are other tensors than these: what code may ask of the inputs themselves is answered by them.

Oracle: the model, in a training step with an augmentation that changes no value.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Net(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = first, nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.last(self.second(self.first(*given, **named)))


class Read(nn.Module):
    """A closed module in front of the cut, whose result depends on what it asks."""

    def __init__(self, asks: Any) -> None:
        super().__init__()
        self.layer, self.asks = nn.Linear(8, 16), asks

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layer(x) * (self.asks(x) if y is None else self.asks(x, y))


def with_scale(x: Tensor) -> Tensor:
    x.scale = 3.0  # type: ignore[attr-defined]
    return x


X, Y = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
ACROSS = torch.randn(5, 6, 8).transpose(0, 1)
PART = torch.randn(6, 9, 8)[:, 2:7]
CASES: dict[str, tuple[Any, tuple[Tensor, ...], list[tuple[Tensor, ...]], str]] = {
    "plain": (lambda x: 1.0, (X,), [(Y,), (ACROSS,), (PART,)], "sparse"),
    "one tensor": (lambda x, y: 2.0 if x is y else 1.0, (X, Y), [(X, X), (X, Y)], "sparse"),
    "set on it": (lambda x: getattr(x, "scale", 1.0), (X,), [(X,), (with_scale(X.clone()),)], "sparse"),
    "contiguous": (lambda x: 2.0 if x.is_contiguous() else 1.0, (X,), [(X,), (ACROSS,), (PART,)], "sparse"),
    "strides": (lambda x: float(x.stride(1)), (X,), [(X,), (ACROSS,), (PART,)], "sparse"),
    "a view": (lambda x: 2.0 if x._is_view() else 1.0, (X,), [(X,), (ACROSS,)], "dense"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_answers_as_the_batch_does(name: str) -> None:
    asks, example, calls, backward = CASES[name]
    model = Net(Read(asks))
    plain = copy.deepcopy(model).train()
    aug = ga.rewrite(
        model, "second", transform=lambda h: h * 1.0, stop_grad=True, example_inputs=example
    ).train()
    assert aug.plan.backward == backward, aug.plan.reason
    for call in calls:
        torch.testing.assert_close(aug(*call), plain(*call))


class Image(Tensor):
    """A class of tensors."""


def test_an_input_of_a_class_of_its_own_is_split_where_nobody_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def whole(*_: Any, **__: Any) -> None:
        raise AssertionError("a dense step")

    aug = ga.rewrite(Net(nn.Linear(8, 16)), "second", rate=0.0, stop_grad=True, example_inputs=X).train()
    monkeypatch.setattr(type(aug), "_forward_training", whole)
    assert aug(X.as_subclass(Image)).shape == (6, 5, 4)


def test_inputs_by_place_that_no_parameter_names() -> None:
    """As the forwards of wrappers take them, peft's among them."""
    model = Net(nn.Linear(8, 16))
    aug = ga.rewrite(model, "second", rate=0.0, stop_grad=True, backward="proved", example_inputs=X).train()
    torch.testing.assert_close(aug(torch.randn(4, 5, 8)).shape, torch.Size([4, 5, 4]))
    torch.testing.assert_close(aug(Y), model(Y))
    ga.verify(aug, X)


def test_compiled_a_tensor_that_is_given_twice_is_taken_once() -> None:
    asks, example, calls, _ = CASES["one tensor"]
    model = Net(Read(asks))
    aug = ga.rewrite(
        model, "second", transform=lambda h: h * 1.0, stop_grad=True, example_inputs=example
    ).train()
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    for call in calls:
        torch.testing.assert_close(compiled(*call), model(*call))
