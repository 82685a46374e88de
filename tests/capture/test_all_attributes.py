"""What attributes a module or an object has, where opened code asks for all of them: one that is new is noticed."""

import argparse
import copy
import inspect
import types
from collections.abc import Callable
from copy import copy as copied
from typing import Any

import pytest
import torch
from asking import Asks, rewritten
from compiling import check_noticed_when_compiled
from torch import Tensor, nn

from graphaug.errors import AssumptionViolated


class Options:
    """A plain object, whose methods go through what it has."""

    def __init__(self) -> None:
        self.scale = 2.0

    def __len__(self) -> int:
        return len(self.__dict__)

    def total(self) -> float:
        return float(sum(vars(self).values()))


class Holds(Asks):
    """A model with objects of several kinds."""

    def __init__(self, asks: Callable[[Any], float]) -> None:
        super().__init__(asks)
        self.options, self.scale = Options(), 2.0
        self.space, self.parsed = types.SimpleNamespace(scale=2.0), argparse.Namespace(scale=2.0)


def numbers_of(thing: Any) -> float:
    return sum(value for value in vars(thing).values() if isinstance(value, float))


NEW: dict[str, tuple[Callable[[Any], float], str]] = {
    "vars(self)": (lambda m: sum(v for k, v in vars(m).items() if k.startswith("scale")), "scale_too"),
    "a comprehension over __dict__": (
        lambda m: sum({k: v for k, v in m.__dict__.items() if k.startswith("scale")}.values()),
        "scale_too",
    ),
    "len": (lambda m: len(vars(m)), "scale_too"),
    "dir(self)": (lambda m: sum(name.startswith("scale") for name in dir(m)), "scale_too"),
    "in vars(self)": (lambda m: 2 if "scale_too" in vars(m) else 1, "scale_too"),
    "a private one": (lambda m: 2 if "_scale_too" in vars(m) else 1, "_scale_too"),
    "in __dict__": (lambda m: 2 if "scale_too" in m.__dict__ else 1, "scale_too"),
    "__dict__.get": (lambda m: m.__dict__.get("scale_too", 1.0), "scale_too"),
    "by a helper": (numbers_of, "scale_too"),
    "in a closed child": (lambda m: 2 if "scale_too" in m.last.__dict__ else 1, "last.scale_too"),
    "an object by a helper": (lambda m: numbers_of(m.options), "options.scale_too"),
    "a method of an object": (lambda m: m.options.total(), "options.scale_too"),
    "len of an object": (lambda m: len(m.options), "options.scale_too"),
    "dir of an object": (lambda m: len(dir(m.options)), "options.scale_too"),
    "getmembers": (lambda m: len(inspect.getmembers(m.options)), "options.scale_too"),
    "copy.copy": (lambda m: sum(vars(copy.copy(m.options)).values()), "options.scale_too"),
    "copy by another name": (lambda m: sum(vars(copied(m.options)).values()), "options.scale_too"),
    "a namespace": (lambda m: sum(vars(m.space).values()), "space.scale_too"),
    "__dict__ of a namespace": (lambda m: sum(m.space.__dict__.values()), "space.scale_too"),
    "parsed options": (lambda m: 2 if "scale_too" in m.parsed else 1, "parsed.scale_too"),
    "what a copy has": (lambda m: copy.copy(m.options).scale, "options.scale"),
}


def put(model: nn.Module, path: str, value: float) -> None:
    *owners, name = path.split(".")
    owner: Any = model
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, value)


def check_noticed(aug: Any, x: Tensor, change: Callable[[Any], Any]) -> None:
    """After a change of the model a call raises; of a copy, which has a model of its own, as well."""
    for one in (aug, copy.deepcopy(aug)):
        before = one.original(x)
        change(one.original)
        assert not torch.equal(one.original(x), before)
        with pytest.raises(AssumptionViolated, match="Call rewrite again"):
            one(x)


@pytest.mark.few(6)
@pytest.mark.parametrize("name", NEW)
def test_an_attribute_that_is_new_is_noticed(name: str) -> None:
    asks, path = NEW[name]
    aug, x = rewritten(Holds(asks))
    check_noticed(aug, x, lambda model: put(model, path, 3.0))


HOOKS: dict[str, tuple[Callable[[Any], float], Callable[[nn.Module], Any]]] = {
    "forward": (
        lambda m: 1 + len(m.last._forward_hooks),
        lambda m: m.register_forward_hook(lambda *_: None),
    ),
    "before": (
        lambda m: 2 if m.last._forward_pre_hooks else 1,
        lambda m: m.register_forward_pre_hook(lambda *_: None),
    ),
    "backward": (
        lambda m: 1 + len(m.last._backward_hooks),
        lambda m: m.register_full_backward_hook(lambda *_: None),
    ),
    "parameters": (
        lambda m: len(m.last._parameters),
        lambda m: m.register_parameter("too", nn.Parameter(torch.ones(1))),
    ),
    "buffers": (lambda m: 1 + len(m.last._buffers), lambda m: m.register_buffer("too", torch.ones(1))),
}


@pytest.mark.parametrize("name", HOOKS)
def test_what_a_closed_child_has_registered_is_noticed(name: str) -> None:
    asks, register = HOOKS[name]
    aug, x = rewritten(Holds(asks))
    check_noticed(aug, x, lambda model: register(model.last))


class SetsItself(nn.Module):
    """A forward that asks for its attributes, and has one more after the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), 2.0

    def forward(self, x: Tensor) -> Tensor:
        scale = next(value for name, value in vars(self).items() if name == "scale")
        if "calls" not in self.__dict__:
            self.calls = 1
        return self.last(self.first(x) * scale)


def test_what_the_forward_itself_sets_is_no_change() -> None:
    aug, x = rewritten(SetsItself())
    for _ in range(2):
        assert torch.equal(aug(x), aug.original(x))


def test_compiling_a_model_does_not_change_what_it_has() -> None:
    """torch.compile, and who replaces it, note on a module that it is compiled."""
    asks, _ = NEW["a comprehension over __dict__"]
    model = Holds(asks)
    aug, x = rewritten(model)
    compiled = torch.compile(aug, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
    model._noted_by_others = True
    assert torch.equal(aug(x), model(x))


def test_a_value_that_a_copy_has_is_noticed_when_compiled() -> None:
    aug, x = rewritten(Holds(NEW["what a copy has"][0]))
    check_noticed_when_compiled(aug, x, lambda model: put(model, "options.scale", 3.0))
