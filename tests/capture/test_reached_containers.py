"""Containers of many kinds that opened code reads: noticed when they change, and left alone where they are filled."""

import array
import weakref
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

INNER = {"gain": 2.0}


class Factor:
    def __init__(self) -> None:
        self.value = 1.0


class Net(nn.Module):
    """Reads one container of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.prompts = nn.ParameterDict({"a": nn.Parameter(torch.ones(4))})
        self.table = {"a": torch.ones(4)}
        self.other_table = {"a": torch.ones(4)}
        self.shift = torch.ones(4)
        self.gains_of_first = [1.0]
        self.bytes, self.array = bytearray([1, 2]), array.array("d", [1.0, 2.0])
        self.objects = np.array([1.0, None], dtype=object)
        self.view = MappingProxyType(INNER)
        factor = Factor()
        self._keep = [factor]
        self.reference = weakref.ref(factor)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for name in self.prompts:
            h = h + self.prompts[name]
        for value in self.table.values():
            h = h + value
        others = self.other_table
        h = h * len(others)
        if self.shift is not None:
            h = h * 2
        kind = "first"
        h = h * getattr(self, f"gains_of_{kind}")[0]
        h = h * self.bytes[0] * self.array[0] * self.objects[0] * self.view["gain"] * self.reference().value
        return h if "REPLACED_LATER" not in globals() else h * 2


def setting(get, key, value):
    return lambda m: get(m).__setitem__(key, value)


CHANGES = {
    "prompts": setting(lambda m: m.prompts, "b", nn.Parameter(torch.ones(4))),
    "the keys of table": setting(lambda m: m.table, "b", torch.ones(4)),
    "the keys of other_table": setting(lambda m: m.other_table, "b", torch.ones(4)),
    "shift": lambda m: setattr(m, "shift", None),
    "gains_of_first": setting(lambda m: m.gains_of_first, 0, 3.0),
    "the numbers in bytes": setting(lambda m: m.bytes, 0, 3),
    "the numbers in array": setting(lambda m: m.array, 0, 3.0),
    "the objects in objects": setting(lambda m: m.objects, 0, 3.0),
    "view['gain']": setting(lambda m: INNER, "gain", 3.0),
    "reference": lambda m: setattr(m.reference(), "value", 3.0),
    "the global 'REPLACED_LATER'": lambda m: setting(lambda m: globals(), "REPLACED_LATER", 1)(m),
}


@pytest.fixture(autouse=True)
def restored():
    yield
    globals().pop("REPLACED_LATER", None)
    INNER["gain"] = 2.0


@pytest.mark.few(4)
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_noticed_and_named(what):
    aug = ga.rewrite(Net(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    x = torch.randn(3, 4)
    aug(x).sum().backward()
    CHANGES[what](aug.original)
    with pytest.raises(AssumptionViolated, match="Call rewrite again") as error:
        aug(x)
    assert what in str(error.value) or what == "prompts"


class Caching(nn.Module):
    """Keeps tables of tensors, in three ways that are usual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.by_length = {1: torch.zeros(1)}
        self.bounded = {1: torch.zeros(1)}
        self.kept = {"last": torch.zeros(1)}

    def table(self, n: int) -> Tensor:
        if n not in self.by_length:
            self.by_length[n] = torch.arange(float(n))
        return self.by_length[n]

    def other_table(self, n: int) -> Tensor:
        tables = self.bounded
        if len(tables) > 3:
            tables.clear()
        return tables.setdefault(n, torch.arange(float(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.table(4) + self.other_table(4)


def test_a_table_may_be_filled():
    model = Caching()
    model.table(4), model.other_table(4)
    aug = ga.rewrite(model, "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    aug(torch.randn(3, 4))
    for n in (5, 6, 7):
        model.table(n)
        model.bounded[n] = torch.zeros(n)
        model.kept[str(n)] = torch.zeros(n)
    aug(torch.randn(3, 4))


class ByDict(nn.Module):
    """Reads one attribute out of ``__dict__``, or goes through all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.gains, self.history = [1.0], []

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.__dict__["gains"][0] * getattr(self, "gain", 1.0)


class AllOfDict(ByDict):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for name, value in self.__dict__.items():
            h = h * value[0] if name.startswith("gain") else h
        return h


@pytest.mark.parametrize("kind", [ByDict, AllOfDict])
def test_what_is_read_out_of_the_dict_of_a_module(kind):
    aug = ga.rewrite(kind(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    if kind is ByDict:
        aug.original.history.append(1)
    aug(torch.randn(3, 4))
    aug.original.gains[0] = 3.0
    with pytest.raises(AssumptionViolated, match="gains"):
        aug(torch.randn(3, 4))
