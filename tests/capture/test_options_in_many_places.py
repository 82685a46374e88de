"""Numbers and switches in many kinds of places: after a change a training step is the model's, or is refused."""

import argparse
import collections
import contextvars
import copy
import dataclasses
import functools
import importlib
import os
import pickle
import sys
import threading
import types

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

pytestmark = pytest.mark.few(10)

settings = types.ModuleType("settings_of_this_test")
settings.scale, settings.Options = 2.0, type("Options", (), {"scale": 2.0, "__module__": "settings"})
sys.modules["settings_of_this_test"] = settings
NUMBER, KEY = 2.0, "GRAPHAUG_SCALE_OF_THIS_TEST"
VARIABLE = contextvars.ContextVar("VARIABLE", default=2.0)
LOCAL = threading.local()
LOCAL.scale = 2.0


@dataclasses.dataclass(slots=True)
class Slots:
    scale: float = 2.0


class Plain:
    scale = 2.0

    def value(self) -> float:
        return self.scale


class Own(Plain):
    def __init__(self) -> None:
        self.scale = 2.0


class Property:
    def __init__(self) -> None:
        self._scale = 2.0

    @property
    def scale(self) -> float:
        return self._scale


class Asked:
    """Answers for the names of its entries, as configurations do."""

    def __init__(self) -> None:
        self._entries = {"scale": 2.0}

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["_entries"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> float:
        return self._entries[name]


class Entries(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


class Net(nn.Module):
    """Multiplies by what ``read`` finds."""

    SCALE = 2.0
    k_2 = 2

    def __init__(self, read, held=None) -> None:
        super().__init__()
        self.a, self.b, self.held, self.read = nn.Linear(8, 8), nn.Linear(8, 8), held, read
        self._k, self._on, self.k_1, self.use_cache = 2, True, 2, False
        self.register_buffer("w", None)
        self.register_parameter("v", None)

    @property
    def k(self) -> int:
        return self._k

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.read(self))


def imported(m: Net) -> float:
    from settings_of_this_test import scale

    return scale


def of_a_module(m: Net) -> float:
    import settings_of_this_test as inner

    return inner.Options.scale


def put(name, value=3.0):
    return lambda m, patch: setattr(m.held, name, value)


def own(name, value):
    return lambda m, patch: setattr(m, name, value)


def entry(key, value=3.0):
    return lambda m, patch: m.held.__setitem__(key, value)


def scale(m: Net) -> float:
    return m.held.scale


KINDS = {
    "a namespace of argparse": (scale, lambda: argparse.Namespace(scale=2.0), put("scale")),
    "a namespace": (scale, lambda: types.SimpleNamespace(scale=2.0), put("scale")),
    "by a string": (
        lambda m: m.held.scale,
        lambda: types.SimpleNamespace(scale=2.0),
        put("scale"),
    ),
    "slots": (scale, Slots, put("scale")),
    "a property of an object": (scale, Property, put("_scale")),
    "a class attribute of an object": (scale, Plain, lambda m, p: p.setattr(Plain, "scale", 3.0)),
    "a method of an object": (lambda m: m.held.value(), Own, put("scale")),
    "__getattr__": (scale, Asked, lambda m, p: m.held._entries.__setitem__("scale", 3.0)),
    "__getitem__": (lambda m: m.held["scale"], Asked, lambda m, p: m.held._entries.__setitem__("scale", 3.0)),
    "a dict with attributes": (scale, lambda: Entries(scale=2.0), put("scale")),
    "entries of such a dict": (lambda m: m.held["scale"], lambda: Entries(scale=2.0), entry("scale")),
    "UserDict": (lambda m: m.held["s"], lambda: collections.UserDict(s=2.0), entry("s")),
    "ChainMap": (lambda m: m.held["s"], lambda: collections.ChainMap({}, {"s": 2.0}), entry("s")),
    "a deep dict": (
        lambda m: m.held["a"]["b"]["c"]["d"],
        lambda: {"a": {"b": {"c": {"d": 2.0}}}},
        lambda m, p: m.held["a"]["b"]["c"].update(d=3.0),
    ),
    "a long list": (lambda m: m.held[2], lambda: [2.0] * 300, entry(2)),
    "a long dict": (lambda m: m.held[2], lambda: dict.fromkeys(range(300), 2.0), entry(2)),
    "a long array": (lambda m: float(m.held[2]), lambda: torch.full((300,), 2.0).numpy(), entry(2)),
    "a list with a tensor": (lambda m: m.held[0] + m.held[1], lambda: [2.0, torch.ones(8)], entry(0)),
    "a tensor in a list": (lambda m: m.held[0] + m.held[1], lambda: [2.0, torch.ones(8)], entry(1)),
    "a set": (lambda m: 2.0 if "on" in m.held else 3.0, lambda: {"on"}, lambda m, p: m.held.clear()),
    "keywords of a partial": (
        lambda m: m.held(),
        lambda: functools.partial(lambda scale: scale, scale=2.0),
        lambda m, p: m.held.keywords.update(scale=3.0),
    ),
    "a computed name": (
        lambda m: getattr(m.held, "".join(("sc", "ale"))),
        Own,
        put("scale"),
    ),
    "private switch": (lambda m: 2 if m._on else 3, None, own("_on", False)),
    "property": (lambda m: m.k, None, own("_k", 3)),
    "an int turned float": (lambda m: m._k, None, own("_k", 3.0)),
    "computed name": (lambda m: getattr(m, f"k_{len('1')}"), None, own("k_1", 3)),
    "vars": (lambda m: vars(m)["k_1"], None, own("k_1", 3)),
    "__dict__": (lambda m: m.__dict__["k_1"], None, own("k_1", 3)),
    "a buffer that was None": (lambda m: 2 if m.w is None else m.w, None, own("w", torch.full((8,), 3.0))),
    "a parameter that was None": (
        lambda m: 2 if m.v is None else m.v,
        None,
        lambda m, p: setattr(m, "v", nn.Parameter(torch.full((8,), 3.0))),
    ),
    "getattr with a default": (lambda m: getattr(m, "gain", 2.0), None, own("gain", 3.0)),
    "getattr of an object": (lambda m: getattr(m.held, "gain", 2.0), Own, put("gain")),
    "hasattr": (lambda m: 3.0 if hasattr(m, "gain") else 2.0, None, own("gain", 3.0)),
    "a class by its name": (lambda m: Net.SCALE, None, lambda m, p: p.setattr(Net, "SCALE", 3.0)),
    "type(self)": (lambda m: type(m).SCALE, None, lambda m, p: p.setattr(Net, "SCALE", 3.0)),
    "a switch of libraries": (lambda m: 3 if m.use_cache else 2, None, own("use_cache", True)),
    "globals()": (lambda m: globals()["NUMBER"], None, lambda m, p: p.setitem(globals(), "NUMBER", 3.0)),
    "eval": (lambda m: eval("NUMBER * 1.0"), None, lambda m, p: p.setitem(globals(), "NUMBER", 3.0)),
    "an import by a string": (
        lambda m: importlib.import_module("settings_of_this_test").scale,
        None,
        lambda m, p: p.setattr(settings, "scale", 3.0),
    ),
    "__import__": (
        lambda m: __import__("settings_of_this_test").scale,
        None,
        lambda m, p: p.setattr(settings, "scale", 3.0),
    ),
    "sys.modules": (
        lambda m: sys.modules["settings_of_this_test"].scale + sys.modules.get("settings_of_this_test").scale,
        None,
        lambda m, p: p.setattr(settings, "scale", 3.0),
    ),
    "the state of a partial": (
        lambda m: m.held(),
        lambda: functools.partial(lambda scale: scale, scale=2.0),
        lambda m, p: m.held.__setstate__((m.held.func, (), {"scale": 3.0}, {})),
    ),
    "an import inside": (imported, None, lambda m, p: p.setattr(settings, "scale", 3.0)),
    "a class of a module": (of_a_module, None, lambda m, p: p.setattr(settings.Options, "scale", 3.0)),
    "a context variable": (lambda m: VARIABLE.get(), None, lambda m, p: VARIABLE.set(3.0)),
    "a thread's own": (lambda m: LOCAL.scale, None, lambda m, p: p.setattr(LOCAL, "scale", 3.0)),
    "the environment": (lambda m: float(os.environ[KEY]), None, lambda m, p: p.setenv(KEY, "3.0")),
}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(KEY, "2.0")
    token = VARIABLE.set(2.0)
    yield
    VARIABLE.reset(token)


def made(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    read, held, _ = KINDS[kind]
    x, model = torch.randn(4, 8), Net(read, held and held())
    return model, ga.rewrite(model, at="a", rate=0.0, example_inputs=x).train(), x


def same_or_refused(aug: nn.Module, model: nn.Module, x: Tensor) -> bool:
    try:
        found = aug(x)
    except ga.GraphaugError:
        return False
    assert torch.equal(found, model(x))
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_after_a_change_is_the_models_or_is_refused(kind, monkeypatch):
    model, aug, x = made(kind)
    assert same_or_refused(aug, model, x)
    KINDS[kind][2](model, monkeypatch)
    same_or_refused(aug, model, x)
    assert torch.equal(aug.eval()(x), model.eval()(x))


class Acts(nn.Module):
    """A forward with a function and a list among its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.weights = nn.Linear(8, 8), nn.Linear(8, 8), torch.relu, [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)) * self.weights[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda aug: pickle.loads(pickle.dumps(aug))])
@pytest.mark.parametrize(
    "change", [lambda m: setattr(m, "act", torch.tanh), lambda m: m.weights.__setitem__(0, 5.0)]
)
def test_a_copy_of_what_was_changed_refuses_as_well(copied, change):
    model, x = Acts(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="a", rate=0.0, example_inputs=x).train()
    assert torch.equal(copied(aug)(x), model(x))
    change(model)
    other = copied(aug)
    for _ in range(2):
        with pytest.raises(AssumptionViolated, match="Call rewrite again"):
            other(x)
        other = copied(other)


class Written(nn.Module):
    """Sets what it does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self._calls, self.progress = nn.Linear(8, 8), nn.Linear(8, 8), 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self._rows = len(x)
        return self.b(self.a(x))


def test_what_the_loop_moves_and_the_code_does_not_read_may_change():
    model, x = Written(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="a", rate=0.0, example_inputs=x).train()
    for step in range(3):
        model._calls, model.progress, model._rows = step, step / 3, -step
        assert torch.equal(aug(x), model(x))
