"""Tables of objects that a forward fills, as einops keeps one of backends by the types of tensors; and metaclasses.

Oracle: the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.proof.shadow.origins import Origins


class Backend:
    """What is kept: it holds all of torch."""

    def __init__(self) -> None:
        self.torch = torch

    def doubled(self, h: Tensor) -> Tensor:
        return self.torch.add(h, h)


class Linked(Backend):
    """Each holds the next one twice, so that 2 ** 60 ways lead through them."""

    def __init__(self, left: int = 60) -> None:
        super().__init__()
        self.next = self.again = Linked(left - 1) if left else None


class Ring(Backend):
    """Objects that hold each other."""

    def __init__(self, others: int = 20) -> None:
        super().__init__()
        self.ring: list[Ring] = [Ring(0) for _ in range(others)]
        for other in self.ring:
            other.ring = self.ring


class Keeps(nn.Module):
    """Keeps an object for each type of tensor that it meets."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.make, self.known = make, dict[type, Backend]()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        backend = self.known.get(type(h))
        if backend is None:
            backend = self.known[type(h)] = self.make()
        return self.last(backend.doubled(h))


@pytest.mark.parametrize("make", [Backend, Linked, Ring])
def test_a_table_of_objects_that_a_closed_module_fills(make: Callable[[], Backend]) -> None:
    torch.manual_seed(0)
    keeps, x = Keeps(make), torch.randn(6, 4)
    aug = ga.rewrite(nn.Sequential(keeps, nn.Linear(4, 4)), "1", rate=0.0, backward="dense", example_inputs=x)
    assert not keeps.known
    assert torch.equal(aug(x), aug.original(x))
    assert set(keeps.known) == {Tensor}


@pytest.mark.parametrize("make", [Backend, Linked, Ring])
def test_a_table_of_objects_that_opened_code_fills_is_refused(make: Callable[[], Backend]) -> None:
    model = Keeps(make)
    with pytest.raises(ga.GraphaugError, match="keeps 'known' from one call to the next"):
        ga.rewrite(model, "first", example_inputs=torch.randn(6, 4))
    assert not model.known


@pytest.mark.parametrize("make", [Backend, Linked, Ring])
def test_what_stands_for_objects_is_short_and_tells_them_apart(make: Callable[[], Backend]) -> None:
    def told(value: Any) -> Any:
        return Origins({}, {}).token([value, value])

    one, other, third = make(), make(), make()
    assert told(one) == told(other)
    assert len(repr(told(one))) < 20_000
    inner = getattr(third, "next", None) or getattr(third, "ring", [third])[-1]
    inner.scale = 2.0
    assert told(one) != told(third)


class Meta(type):
    """A class of classes."""


class Base(metaclass=Meta):
    pass


KINDS: dict[str, Any] = {"Meta": Meta, "Base": Base, "type": type}


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.meta = nn.Linear(4, 4), nn.Linear(4, 4), Meta

    def forward(self, x: Tensor) -> Tensor:
        known = len(Base.__subclasses__()) + len(KINDS)
        return self.last(self.first(x) * (1 + known)) if isinstance(Base, self.meta) else x


def test_classes_of_classes_where_code_asks_for_subclasses() -> None:
    torch.manual_seed(0)
    model, x = Counts(), torch.randn(6, 4)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    later = type("Later", (Base,), {})
    with pytest.raises(ga.GraphaugError, match="subclasses"):
        aug(x)
    del later
