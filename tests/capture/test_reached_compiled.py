"""Changes after compiling that torch's compiler has to see by itself: it compiles anew, and then all is compared."""

import collections
import enum
import functools
import logging
import re

import numpy as np
import pytest
import torch
from compiling import check_noticed_when_compiled
from torch import Tensor, nn

import graphaug as ga

Gains = collections.namedtuple("Gains", "first")


def applied(function, h):
    return function(h)


def moved(h, scale=1.0, shift=0.0):
    return h * scale + shift


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gains, self.size = Gains(1.0), torch.Size([1])
        self.scaled = functools.partial(torch.mul, other=1.0)
        self.act, self.given, self.span = torch.tanh, functools.partial(applied, torch.tanh), range(2)
        self.shifted, self.cut = functools.partial(moved, scale=2.0), slice(0, 4)
        self.table, self.shift = {"a": torch.ones(4)}, torch.ones(4)
        self.prompts = nn.ParameterDict({"a": nn.Parameter(torch.ones(4))})

    def helper(self, h: Tensor) -> Tensor:
        return h

    @classmethod
    def of_class(cls, h: Tensor) -> Tensor:
        return h

    @staticmethod
    def of_none(h: Tensor) -> Tensor:
        return h

    @property
    def gain(self) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.of_class(self.of_none(self.helper(self.first(x)))) * self.gains.first * self.size[0]
        for value in (*self.table.values(), *self.prompts.values()):
            h = h + value
        h = h if self.shift is None else h * self.gain
        h = self.shifted(self.given(self.act(h)))[:, self.cut]
        for number in self.span:
            h = h + number
        return self.last(self.scaled(h))


CHANGES = {
    "helper": lambda m: setattr(m, "helper", lambda h: h * 3),
    "forward": lambda m: setattr(m, "forward", lambda x: m.first(x)),
    "of_none": lambda m: setattr(m, "of_none", torch.tanh),
    "gains": lambda m: setattr(m, "gains", Gains(3.0)),
    "size": lambda m: setattr(m, "size", torch.Size([3])),
    "scaled": lambda m: setattr(m, "scaled", functools.partial(torch.mul, other=3.0)),
    "table": lambda m: m.table.__setitem__("b", torch.ones(4)),
    "prompts": lambda m: m.prompts.__setitem__("b", nn.Parameter(torch.ones(4))),
    "shift": lambda m: setattr(m, "shift", None),
    "act": lambda m: setattr(m, "act", torch.relu),
    "given": lambda m: setattr(m, "given", functools.partial(applied, torch.relu)),
    "a name": lambda m: setattr(m, "shifted", functools.partial(moved, shift=2.0)),
    "a value": lambda m: setattr(m, "shifted", functools.partial(moved, scale=3.0)),
    "span": lambda m: setattr(m, "span", range(3)),
    "cut": lambda m: setattr(m, "cut", slice(0, 4, 1)),
}


@pytest.mark.long
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_compiling_is_noticed(what):
    aug = ga.rewrite(Net(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    check_noticed_when_compiled(aug, torch.randn(3, 4), CHANGES[what])


@pytest.mark.few(2)
@pytest.mark.parametrize("what", ["helper", "act", "shift"])
def test_a_change_after_compiling_is_noticed_where_the_compiler_may_break_the_graph(what):
    """It goes on without an error of its own there, and runs what it compiles anew."""
    torch._dynamo.reset()
    aug = ga.rewrite(Net(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    fast, x = torch.compile(aug, backend="eager"), torch.randn(3, 4)
    fast(x), fast(x)
    CHANGES[what](aug.original)
    with pytest.raises(ga.GraphaugError, match="Call rewrite again"):
        fast(x)
    torch._dynamo.reset()


# --- what lists, dicts and sets hold ------------------------------------------------------------------------


class Named(enum.Enum):
    ONE = 1


@functools.lru_cache
def cached(number: int) -> int:
    return number


HELD = {
    "numbers": (1.0, 2.0),
    "a pattern": re.compile("a"),
    "a pattern and its text": (re.compile("a"), "x"),
    "in each other": ((1, (2, 3)), ()),
    "a named tuple": Gains(2.0),
    "a size": torch.Size([1]),
    "a partial": functools.partial(torch.mul, other=2.0),
    "a frozenset": frozenset({1}),
    "a frozenset in a tuple": (frozenset({1}), 2),
    "a set": {1},
    "a dict": {"a": (1, 2)},
    "a range": range(3),
    "a slice": slice(1, 2),
    "a function": lambda h: h,
    "a method": "a".upper,
    "a cached function": cached,
    "a builtin": len,
    "an autograd function": torch.autograd.Function,
    "a class": Net,
    "an enum": Named.ONE,
    "an array": np.ones(2),
    "a logger": logging.getLogger("held"),
    "a tensor": torch.ones(1),
    "a module": nn.ReLU(),
    "nan": float("nan"),
    "none": None,
}
LISTED: list = []
MAPPED: dict = {}
MEMBERS: set = set()


class Goes(nn.Module):
    """Goes through containers of its file, and does nothing with most of what they hold."""

    def __init__(self, through: str) -> None:
        super().__init__()
        self.first, self.last, self.through = nn.Linear(4, 4), nn.Linear(4, 4), through

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.through == "list":
            for held in LISTED:
                h = h * 2 if held is Ellipsis else h
        elif self.through == "dict":
            for held in MAPPED.values():
                h = h * 2 if held is Ellipsis else h
        elif "more" in MEMBERS:
            h = h * 2
        return self.last(h)


@pytest.fixture
def held():
    yield
    LISTED.clear()
    MAPPED.clear()
    MEMBERS.clear()


@pytest.mark.parametrize("through", ["list", "dict"])
@pytest.mark.parametrize("what", HELD)
@pytest.mark.few(6)
def test_what_containers_hold_compiles(what, through, held):
    """Of each kind of value, in the place of which torch's compiler may make another: nothing was changed."""
    LISTED.append(HELD[what])
    MAPPED["key"] = HELD[what]
    aug = ga.rewrite(Goes(through), "first", example_inputs=torch.randn(4, 4)).train()
    torch._dynamo.reset()
    fast = torch.compile(aug, fullgraph=True, backend="eager")
    fast(torch.randn(3, 4)).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        fast(torch.randn(3, 4))


@pytest.mark.parametrize(
    ("through", "change"),
    [
        ("list", lambda m: LISTED.append(1)),
        ("list", lambda m: LISTED.__setitem__(0, (1.0, 3.0))),
        ("list", lambda m: LISTED.__setitem__(0, (1.0, 2.0, 3.0))),
        ("list", lambda m: LISTED.__setitem__(1, ((1, (2, 4)), "b"))),
        ("dict", lambda m: MAPPED.__setitem__("a", (1, (2, 4)))),
        ("set", lambda m: MEMBERS.add("more")),
        ("set", lambda m: MEMBERS.discard("some")),
    ],
)
@pytest.mark.few(3)
def test_what_is_changed_in_containers_is_noticed(through, change, held):
    LISTED.extend([(1.0, 2.0), ((1, (2, 3)), "b")])
    MAPPED["a"] = (1, (2, 3))
    MEMBERS.update({"some", "thing"})
    aug = ga.rewrite(Goes(through), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    check_noticed_when_compiled(aug, torch.randn(3, 4), change)
