"""What opened code reads off things that are torch's or Python's, and asks of classes, children and tensors.

A change of it is noticed.
"""

import builtins
import copy
import functools
import math
import os
import string
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from asking import NAME, Asks, check_noticed, rewritten
from compiling import check_noticed_when_compiled
from torch import Tensor, nn
from torch.nn import functional as F

from graphaug.errors import AssumptionViolated

settings = types.ModuleType("settings")
modules = sys.modules


def imported() -> float:
    from torch import put_there

    return put_there


class Options:
    """A class whose attribute methods read."""

    scale = 1.0


class OfTensors(nn.Module):
    """A forward that reads what a user has put on the class of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * h.put_there)  # type: ignore[attr-defined]


# --- what lies on things of torch, NumPy and Python ---------------------------------------------------------

PUT: dict[str, tuple[Callable[[Any], float], Callable[[Any], Any]]] = {
    "torch": (lambda m: torch.put_there, lambda v: setattr(torch, "put_there", v)),
    "a module of torch": (lambda m: F.put_there, lambda v: setattr(F, "put_there", v)),
    "a module in a module": (lambda m: torch.nn.put_there, lambda v: setattr(torch.nn, "put_there", v)),
    "numpy": (lambda m: np.put_there, lambda v: setattr(np, "put_there", v)),
    "Python": (lambda m: string.put_there, lambda v: setattr(string, "put_there", v)),
    "an import": (lambda m: imported(), lambda v: setattr(torch, "put_there", v)),
    "builtins": (lambda m: put_there, lambda v: setattr(builtins, "put_there", v)),  # noqa: F821
    "an object": (
        lambda m: torch.put_there.scale,
        lambda v: setattr(torch, "put_there", types.SimpleNamespace(scale=v)),
    ),
    "a dict": (lambda m: torch.put_there["p"], lambda v: setattr(torch, "put_there", {"p": v})),
    "a function": (lambda m: F.put_there(2.0), lambda v: setattr(F, "put_there", lambda x: x * v)),
    "nn.Module": (lambda m: m.put_there, lambda v: setattr(nn.Module, "put_there", v)),
    "nn.Module by its name": (lambda m: nn.Module.put_there, lambda v: setattr(nn.Module, "put_there", v)),
    "a method of nn.Module": (
        lambda m: m.put_there(),
        lambda v: (setattr(nn.Module, "put_there", lambda self: Options.scale), setattr(Options, "scale", v)),
    ),
    "a property of nn.Module": (
        lambda m: m.put_there,
        lambda v: (
            setattr(nn.Module, "put_there", property(lambda self: Options.scale)),
            setattr(Options, "scale", v),
        ),
    ),
    "a layer's class": (lambda m: nn.Linear.put_there, lambda v: setattr(nn.Linear, "put_there", v)),
    "a closed layer's class": (lambda m: m.first.put_there, lambda v: setattr(nn.Linear, "put_there", v)),
    "the class of tensors": (lambda m: Tensor.put_there, lambda v: setattr(Tensor, "put_there", v)),
    "a module asked for": (
        lambda m: 1.0 if "GRAPHAUG_TESTS_ASK" in sys.modules else 2.0,
        lambda v: sys.modules.update({NAME: types.ModuleType(NAME)} if v > 1 else {}),
    ),
    "a module got": (
        lambda m: 1.0 if modules.get("GRAPHAUG_TESTS_ASK") else 2.0,
        lambda v: sys.modules.update({NAME: types.ModuleType(NAME)} if v > 1 else {}),
    ),
}
MISSING: dict[str, tuple[Callable[[Any], float], Any]] = {
    "torch": (lambda m: getattr(torch, "put_there", 1.0), torch),
    "settings": (lambda m: getattr(settings, "put_there", 1.0), settings),
    "whether settings have it": (lambda m: 3.0 if hasattr(settings, "put_there") else 1.0, settings),
    "a function": (lambda m: getattr(F.softmax, "put_there", 1.0), F.softmax),
    "a function of the user's": (lambda m: getattr(imported, "put_there", 1.0), imported),
    "nn.Module": (lambda m: getattr(nn.Module, "put_there", 1.0), nn.Module),
    "the class of tensors": (lambda m: getattr(Tensor, "put_there", 1.0), Tensor),
    "Python": (lambda m: 3.0 if hasattr(sys, "put_there") else 1.0, sys),
}
REPLACED: dict[str, tuple[Callable[[Any], float], Any, str]] = {
    "math": (lambda m: float(math.floor(1.5)), math, "floor"),
    "numpy": (lambda m: float(np.floor(1.5)), np, "floor"),
    "builtins": (lambda m: float(round(1.4)), builtins, "round"),
    "a question": (lambda m: 1.0 + os.path.exists("/"), os.path, "exists"),
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the tests put somewhere is taken away again."""
    yield
    for owner in (torch, F, torch.nn, np, string, sys, builtins, settings, nn.Module, nn.Linear, Tensor):
        if "put_there" in vars(owner):
            delattr(owner, "put_there")
    for function in (F.softmax, imported):
        vars(function).pop("put_there", None)
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize("where", PUT)
def test_what_a_user_has_put_there(where: str) -> None:
    asks, put = PUT[where]
    put(1.0)
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: put(2.0))


def test_what_a_user_has_put_on_tensors() -> None:
    Tensor.put_there = 1.0  # type: ignore[attr-defined]
    aug, x = rewritten(OfTensors())
    check_noticed(aug, x, lambda: setattr(Tensor, "put_there", 2.0))


@pytest.mark.parametrize("where", MISSING)
def test_what_is_not_there(where: str) -> None:
    asks, owner = MISSING[where]
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: setattr(owner, "put_there", 2.0))


@pytest.mark.parametrize("where", REPLACED)
def test_a_function_that_is_replaced(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asks, owner, name = REPLACED[where]
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: monkeypatch.setattr(owner, name, lambda _: 9.0))


@pytest.mark.parametrize(
    "where", ["torch", "builtins", "nn.Module", "a closed layer's class", "a module asked for"]
)
def test_compiled_code_notices_what_was_put_there(where: str) -> None:
    asks, put = PUT[where]
    put(1.0)
    aug, x = rewritten(Asks(asks))
    check_noticed_when_compiled(aug, x, lambda _: put(2.0))


def told(model: Any) -> float:
    print("told")
    return 2.0


def test_print_may_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    aug, x = rewritten(Asks(told))
    monkeypatch.setattr(builtins, "print", lambda *_, **__: None)
    assert torch.equal(aug(x), aug.original(x))


def test_constants_of_torch_and_python_are_no_hindrance() -> None:
    aug, x = rewritten(Asks(lambda m: torch.pi * math.pi * float(np.pi) * sys.maxsize**0 * 1.0))
    assert torch.equal(torch.compile(aug, fullgraph=True, backend="eager")(x), aug(x))


# --- what code asks of classes, children and tensors ---------------------------------------------------------


class Base:
    """A class that code asks for its subclasses."""


class Kept:
    """A descriptor with a number of its own."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return self.scale


class Holds:
    kept = Kept()


@functools.singledispatch
def scale_of(value: Any) -> float:
    return 1.0


lazy = types.ModuleType("lazy")
lazy_numbers = {"scale": 1.0}
lazy.__getattr__ = lambda name: lazy_numbers[name]  # type: ignore[method-assign]
holds, made = Holds(), []


def add_child(model: Any) -> None:
    model.add_module("another", nn.Linear(4, 4))


def tie(model: Any) -> None:
    model.last.weight = model.first.weight


def with_a_class(model: Any) -> None:
    model.first.__class__ = type("Other", (nn.Linear,), {})


THINGS: dict[str, tuple[Callable[[Any], float], Callable[[Any], Any]]] = {
    "an implementation": (lambda m: scale_of(3), lambda m: scale_of.register(int)(lambda _: 2.0)),
    "a subclass": (
        lambda m: 1.0 + len(Base.__subclasses__()),
        lambda m: made.append(type("Derived", (Base,), {})),
    ),
    "a descriptor": (lambda m: holds.kept, lambda m: setattr(vars(Holds)["kept"], "scale", 2.0)),
    "a module's __getattr__": (lambda m: lazy.scale, lambda m: lazy_numbers.update(scale=2.0)),
    "children": (lambda m: float(len(list(m.children()))), add_child),
    "modules": (lambda m: float(len([*m.named_modules()])), add_child),
    "buffers": (lambda m: 1.0 + len([*m.buffers()]), lambda m: m.register_buffer("b", torch.ones(1))),
    "the class of a child": (
        lambda m: 1.0 + isinstance(m.last, nn.Sequential),
        lambda m: setattr(m, "last", nn.Sequential(m.last)),
    ),
    "the class of a child as it is": (lambda m: 1.0 + (type(m.first) is nn.Linear), with_a_class),
    "whether weights are tied": (lambda m: 1.0 + (m.first.weight is m.last.weight), tie),
    "whether variables are tied": (lambda m: same(m.first.weight, m.last.weight), tie),
    "what is set on a weight": (
        lambda m: 1.0 + any(getattr(p, "marked", False) for p in m.parameters()),
        lambda m: setattr(m.first.bias, "marked", True),
    ),
}


def same(a: Tensor, b: Tensor) -> float:
    return 1.0 + (a is b)


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_asked_of_classes_children_and_tensors(thing: str) -> None:
    asks, change = THINGS[thing]
    aug, x = rewritten(Asks(asks))
    before = aug.original(x)
    change(aug.original)
    assert not torch.equal(aug.original(x), before)
    with pytest.raises(AssumptionViolated, match="Call rewrite again"):
        aug(x)


def test_tensors_that_are_tied_are_so_in_a_copy() -> None:
    model = Asks(THINGS["whether weights are tied"][0])
    tie(model)
    aug, x = rewritten(model)
    copied = copy.deepcopy(aug)
    assert torch.equal(copied(x), aug(x))
    copied.original.last.weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(AssumptionViolated, match=r"first\.weight and last\.weight were tied or untied"):
        copied(x)
    assert torch.equal(aug(x), model(x))
