"""What a forward counts in arrays, slots and subclasses of containers: refused where it is opened, kept where closed.

Oracle: the model's own counts.
"""

from __future__ import annotations

import array
import collections
import contextvars
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError


class Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def __getitem__(self, key: str) -> int:
        return self.n

    def __setitem__(self, key: str, value: int) -> None:
        self.n = value


class Table(dict[str, int]):
    """A dict of the user's own class."""


class Row(list[int]):
    """A list of the user's own class."""


HOLDERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "an array of NumPy": (lambda: np.zeros(2), 0),
    "slots": (Slots, "n"),
    "a subclass of dict": (lambda: Table(n=0), "n"),
    "a subclass of list": (lambda: Row([0]), 0),
    "a UserDict": (lambda: collections.UserDict(n=0), "n"),
    "a bytearray": (lambda: bytearray(4), 0),
    "an array": (lambda: array.array("i", [0]), 0),
}


class Counting(nn.Module):
    def __init__(self, holder: Any, key: Any) -> None:
        super().__init__()
        self.first, self.last, self.holder, self.key = nn.Linear(8, 8), nn.Linear(8, 3), holder, key

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.holder[self.key] += 1
        return self.last(h)


@pytest.mark.parametrize("name", HOLDERS)
def test_what_opened_code_counts_is_refused_and_left_alone(name: str) -> None:
    make, key = HOLDERS[name]
    model = Counting(make(), key)
    with pytest.raises(CaptureError, match="holder"):
        ga.rewrite(model, "first", example_inputs=torch.randn(4, 8))
    assert model.holder[key] == 0


@pytest.mark.parametrize("name", HOLDERS)
def test_what_a_closed_module_counts_goes_on(name: str) -> None:
    make, key = HOLDERS[name]
    model = nn.Sequential(Counting(make(), key), nn.Linear(3, 3))
    aug = ga.rewrite(model, "1", backward="dense", example_inputs=torch.randn(4, 8))
    assert model[0].holder[key] == 0
    for count in (1, 2, 3):
        aug(torch.randn(4, 8))
        assert model[0].holder[key] == count


class Reads(Counting):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * (1 + float(self.holder[self.key])))


@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_read_alone_is_no_state(name: str) -> None:
    make, key = HOLDERS[name]
    model, x = Reads(make(), key), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))


_calls: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)


class InContext(Counting):
    """Counts in a context variable; with ``back`` it is set for the call alone."""

    back = False

    def forward(self, x: Tensor) -> Tensor:
        before = _calls.set(_calls.get() + 1)
        h = self.last(self.first(x))
        if self.back:
            _calls.reset(before)
        return h


def test_a_context_variable_that_stays_set_is_refused() -> None:
    with pytest.raises(CaptureError, match="calls"):
        ga.rewrite(InContext(None, None), "first", example_inputs=torch.randn(4, 8))
    assert _calls.get() == 0


def test_a_context_variable_that_is_set_for_a_call_is_none_of_its_state() -> None:
    model, x = InContext(None, None), torch.randn(4, 8)
    model.back = True
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
