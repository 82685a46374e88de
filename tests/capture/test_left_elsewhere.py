"""What a forward leaves outside of its modules: on objects, in containers, on classes, functions and in namespaces.

A closed module or the loss reads it, and a graph does not set it: refused, whether the name was there before or not.
And what opened code reads of functions: their code, which a notebook exchanges in place, and what those in containers
read.
Oracle: the model itself.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

SIZE = 1
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Shared:
    """What two modules share."""

    n = 1

    def __init__(self) -> None:
        self.here, self.table, self.cells = 1, {"n": 1}, [1]


def noted() -> None:
    """A function that things are set on."""


class Head(nn.Module):
    """A layer, times a number that it reads somewhere."""

    def __init__(self, read: Callable[[Shared], Any], shared: Shared) -> None:
        super().__init__()
        self.layer, self.read, self.shared = nn.Linear(7, 3), read, shared

    def forward(self, h: Tensor) -> Tensor:
        read = self.read(self.shared)
        return self.layer(h) * (read.mean() if isinstance(read, Tensor) else read)


class Net(nn.Module):
    """Sets something between two layers, the second of which reads it."""

    def __init__(self, write: Callable[[Shared, Tensor], Any], read: Callable[[Shared], Any]) -> None:
        super().__init__()
        self.shared = Shared()
        self.body, self.head, self.write = nn.Linear(5, 7), Head(read, self.shared), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        self.write(self.shared, h)
        return self.head(h)


def set_global(_: Shared, h: Tensor) -> None:
    global SIZE
    SIZE = h.shape[1]


def set_new_global(_: Shared, h: Tensor) -> None:
    global NEW_SIZE
    NEW_SIZE = h.shape[0]


def set_in_module(_: Shared, h: Tensor) -> None:
    math.size = h  # type: ignore[attr-defined]


WRITES: dict[str, tuple[Callable[[Shared, Tensor], Any], Callable[[Shared], Any]]] = {
    "an attribute": (lambda s, h: setattr(s, "here", h.shape[1]), lambda s: s.here),
    "a new attribute": (lambda s, h: setattr(s, "there", h.shape[1]), lambda s: getattr(s, "there", 1)),
    "an entry of a dict": (lambda s, h: s.table.update(n=h.shape[1]), lambda s: s.table["n"]),
    "a new entry of a dict": (lambda s, h: s.table.update(m=h.shape[1]), lambda s: s.table.get("m", 1)),
    "an entry of a list": (lambda s, h: s.cells.__setitem__(0, h.shape[1]), lambda s: s.cells[0]),
    "an attribute of a class": (lambda s, h: setattr(Shared, "n", h.shape[1]), lambda s: Shared.n),
    "a new attribute of a class": (lambda s, h: setattr(Shared, "m", h), lambda s: getattr(Shared, "m", 1)),
    "a new attribute of a function": (lambda s, h: setattr(noted, "n", h), lambda s: getattr(noted, "n", 1)),
    "a table": (
        lambda s, h: setattr(s, "here", torch.arange(h.shape[1]).float()), lambda s: s.here
    ),
    "a global": (set_global, lambda s: SIZE),
    "a new global": (set_new_global, lambda s: globals().get("NEW_SIZE", 1)),
    "a name in a module": (set_in_module, lambda s: getattr(math, "size", 1)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "n", 1)
    monkeypatch.setitem(globals(), "SIZE", 1)
    for owner, name in ((Shared, "m"), (noted, "n"), (math, "size")):
        monkeypatch.setattr(owner, name, None, raising=False)
        monkeypatch.delattr(owner, name)
    monkeypatch.setitem(globals(), "NEW_SIZE", None)
    monkeypatch.delitem(globals(), "NEW_SIZE")


@pytest.mark.few(5)
@pytest.mark.parametrize(("write", "read"), WRITES.values(), ids=WRITES)
def test_what_closed_code_reads_is_refused(write: Callable[..., Any], read: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError, match=r"the model changes|takes other arguments|sets"):
        ga.rewrite(Net(write, read), "body", rate=0.0, example_inputs=X)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [name for name in WRITES if name != "a table"])
def test_so_is_what_nobody_in_the_model_reads(name: str) -> None:
    write, _ = WRITES[name]
    with pytest.raises(CaptureError, match=r"the model changes|takes other arguments|sets"):
        ga.rewrite(Net(write, lambda s: 1), "body", rate=0.0, example_inputs=X)


class Marks(nn.Module):
    """Sets an attribute of a parameter, or of a closed module's class."""

    def __init__(self, on_class: bool) -> None:
        super().__init__()
        self.body, self.head, self.on_class = nn.Linear(5, 7), nn.Linear(7, 3), on_class

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.on_class:
            type(self.head).last = h
        else:
            self.head.weight.last = h
        return self.head(h)


@pytest.mark.parametrize("on_class", [False, True])
def test_parameters_and_classes_of_torch_are_looked_at(on_class: bool) -> None:
    try:
        with pytest.raises(CaptureError, match=r"the model changes '(head\.weight|Linear)\.last'"):
            ga.rewrite(Marks(on_class), "body", rate=0.0, example_inputs=X)
    finally:
        if "last" in vars(nn.Linear):
            del nn.Linear.last


def doubled(h: Tensor) -> Tensor:
    return h * 2


def tripled(h: Tensor) -> Tensor:
    return h * 3


def scaled(h: Tensor) -> Tensor:
    return h * SIZE


class Through(nn.Module):
    """Calls functions that it holds."""

    def __init__(self, functions: Any) -> None:
        super().__init__()
        self.body, self.head, self.functions = nn.Linear(5, 7), nn.Linear(7, 3), functions

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        for function in self.functions.values() if isinstance(self.functions, dict) else self.functions:
            h = function(h)
        return self.head(doubled(h))


@pytest.mark.parametrize(
    "functions",
    [[scaled], (scaled,), {"a": scaled}, [types.MethodType(lambda _, h: scaled(h), object())]],
    ids=["a list", "a tuple", "a dict", "a bound method in a list"],
)
def test_what_functions_in_containers_read_is_relied_on(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Through(functions)
    aug = ga.rewrite(model, "body", rate=0.0, example_inputs=X)
    torch.testing.assert_close(aug(X), model(X))
    monkeypatch.setitem(globals(), "SIZE", 5)
    with pytest.raises(AssumptionViolated, match="SIZE"):
        aug(X)


@pytest.mark.parametrize("owner", [doubled, Through.forward])
def test_code_that_is_exchanged_in_place_is_seen(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Through([])
    aug = ga.rewrite(model, "body", rate=0.0, example_inputs=X)
    other = tripled if owner is doubled else lambda self, x: self.head(self.body(x))
    monkeypatch.setattr(owner, "__code__", other.__code__)
    with pytest.raises(AssumptionViolated, match=f"before the code of {owner.__qualname__} changed"):
        aug(X)
    again = ga.rewrite(model, "body", rate=0.0, example_inputs=X)
    torch.testing.assert_close(again(X), model(X))


def test_sizes_in_objects_stay_sizes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> torch.distributions.Distribution:
            mean = self.head(self.body(x))
            return torch.distributions.Independent(torch.distributions.Normal(mean, torch.ones_like(mean)), 1)

    model = Net()
    aug = ga.rewrite(model, "body", rate=0.0, example_inputs=X)
    for rows in (6, 4):
        found, expected = aug(X[:rows]), model(X[:rows])
        assert type(found.batch_shape) is torch.Size
        assert (found.batch_shape, found.event_shape) == (expected.batch_shape, expected.event_shape)
        torch.testing.assert_close(found.log_prob(found.mean), expected.log_prob(expected.mean))
