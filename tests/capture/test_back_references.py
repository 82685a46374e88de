"""Attributes that opened code sets and a closed module reads through a reference to it. Oracle: the model itself."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError

FEATURES = 8


class Gate(nn.Module):
    """Reads a number or tensor of whoever owns it."""

    def __init__(self, owner: Callable[[], Any]) -> None:
        super().__init__()
        self.linear, self.owner = nn.Linear(FEATURES, FEATURES), owner

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.owner().gate


class Method(Gate):
    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.owner.__self__.gate  # type: ignore[attr-defined]


class Listed(nn.Module):
    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.linear, self.owner = nn.Linear(FEATURES, FEATURES), [owner]

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.owner[0].gate


HELD: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weakly": lambda owner: Gate(weakref.ref(owner)),
    "in a list": Listed,
    "by a method": lambda owner: Method(owner.hand),
}
SET: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": torch.sigmoid,
    "one without a gradient": lambda x: torch.sigmoid(x).detach(),
    "a number": lambda x: x.shape[0] * 0.5,
}


class Owner(nn.Module):
    def __init__(self, how: str, what: str) -> None:
        super().__init__()
        self.gate: Any = 1.0
        self.first, self.middle = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.last = HELD[how](self)
        self.what = SET[what]

    def hand(self) -> Owner:
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.gate = self.what(x)
        return self.last(self.middle(self.first(x)))


@pytest.mark.parametrize("what", SET)
@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
def test_what_a_closed_module_reads_of_its_owner_is_refused(how: str, what: str, called: bool) -> None:
    model, x = Owner(how, what), torch.randn(6, FEATURES)
    if called:
        model(x)
    gate = model.gate
    with pytest.raises(CaptureError, match="sets 'gate' and then calls 'last', which may read it"):
        ga.rewrite(model, "middle", example_inputs=x)
    assert model.gate is gate


class Shared(nn.Module):
    gate: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * Shared.gate


class SetsAClass(nn.Module):
    def __init__(self, of_parameters: bool) -> None:
        super().__init__()
        self.first, self.last, self.of_parameters = nn.Linear(FEATURES, FEATURES), Shared(), of_parameters

    def forward(self, x: Tensor) -> Tensor:
        Shared.gate = torch.sigmoid(self.first.bias if self.of_parameters else x)
        return self.last(self.first(x))


@pytest.mark.parametrize("of_parameters", [False, True])
def test_a_tensor_that_a_closed_module_finds_in_a_class_is_refused(of_parameters: bool) -> None:
    with pytest.raises(
        CaptureError, match=r"computes sigmoid.*, and 'last', which is not given that, finds it"
    ):
        ga.rewrite(SetsAClass(of_parameters), "first", example_inputs=torch.randn(6, FEATURES))


class Logs(nn.Module):
    """Knows its owner, and reads another name of it."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.linear, self.owner = nn.Linear(FEATURES, FEATURES), types.SimpleNamespace(of=[owner])

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.owner.of[0].scale


class Keeping(nn.Module):
    """Keeps features for its user, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Any = None
        self.scale = 2.0
        self.first, self.last = nn.Linear(FEATURES, FEATURES), Logs(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.features = h
        return self.last(h)


def test_what_no_closed_module_reads_may_be_set() -> None:
    model, x = Keeping(), torch.randn(6, FEATURES)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x).train()
    expected = model(x)
    assert torch.equal(aug(x), expected)
