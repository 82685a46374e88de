"""The state of a model and of the random generators, put back after a capture."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from graphaug.capture.regions import Modes
from graphaug.capture.values import UNKNOWN

_REGISTRIES = ("_parameters", "_buffers", "_modules")
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Names of attributes that torch itself gives every module."""


FILLED: Any = object()
"""Stands for the earlier contents of a container that was filled."""

_CONTAINERS = (list, dict, set, OrderedDict)  # hooks are in these

_WAIT = 0.05
"""Seconds in which a thread that draws all the time draws at least once."""
SMALL = 1 << 20
"""Parameters of at most so many numbers are put back: prototypes that a forward writes, not whole weights."""


class ModelState:
    """What a model's modules hold, and the contents of their lists, dicts and sets.

    Args:
        model: the model.
        tensors: whether to keep the contents of small tensors, too.
    """

    def __init__(self, model: nn.Module, tensors: bool = True) -> None:
        # what a scripted module holds lies outside of Python, and its registries cannot be filled
        scripted = torch.jit.ScriptModule
        self._scripted = [(m, m.training) for m in model.modules() if isinstance(m, scripted)]
        self._held = [(p, m, dict(vars(m))) for p, m in model.named_modules() if not isinstance(m, scripted)]
        self._contents = [
            (path, name, value, _copied(name, value))
            for path, _, attributes in self._held
            for name, value in attributes.items()
            if name in _REGISTRIES or type(value) in _CONTAINERS
        ]
        configs = {id(c): c for _, _, held in self._held for c in held.values() if is_configuration(c)}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]
        small = (p for p in model.parameters() if not is_lazy(p) and p.numel() <= SMALL)
        kept = (*(b for b in model.buffers() if not is_lazy(b)), *small) if tensors else ()
        self._tensors = [(t, t.detach().clone()) for t in kept]

    def before(self, path: str, name: str) -> Any:
        """What an attribute of a module was; `UNKNOWN` if it was not there."""
        return next((held.get(name, UNKNOWN) for p, _, held in self._held if p == path), UNKNOWN)

    def changes(self) -> Iterator[str]:
        """Paths of the attributes that were set or filled since; training flags do not count."""
        for path, m, before in self._held:
            for name, value in vars(m).items():
                if name not in OF_EVERY_MODULE and before.get(name, UNKNOWN) is not value:
                    yield f"{path}.{name}".removeprefix(".")
        for path, name, value, before in self._contents:
            if name in OF_EVERY_MODULE - set(_REGISTRIES):
                changed = []
            elif name in _REGISTRIES:
                changed = [k for k, v in value.items() if before.get(k) is not v]
            else:
                changed = [name] if _entries(before) != _entries(value) else []
            yield from (f"{path}.{k}".removeprefix(".") for k in changed)

    def replaced(self) -> Iterator[tuple[str, Any]]:
        """The paths of `changes`, each with what was there before: None if nothing was."""
        held = {path: (attributes, m) for path, m, attributes in self._held}
        registered = {
            (path, name): before
            for path, name, _, before in self._contents
            if name in ("_parameters", "_buffers")
        }
        for name in dict.fromkeys(self.changes()):
            path, _, attribute = name.rpartition(".")
            attributes, module = held.get(path, ({}, None))
            for registry in ("_parameters", "_buffers"):
                attributes = {**registered.get((path, registry), {}), **attributes}
            before = attributes.get(attribute)
            same = module is not None and before is not None and vars(module).get(attribute) is before
            yield name, FILLED if same else before

    def restore(self) -> None:
        """Put everything back."""
        for scripted, mode in self._scripted:
            scripted.training = mode
        for _, m, attributes in self._held:
            vars(m).clear()
            vars(m).update(attributes)
        for _, _, value, before in self._contents:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
        for config, entries in self._configs:
            vars(config).clear()
            vars(config).update(entries)
        with torch.no_grad():
            for tensor, before in self._tensors:
                # not by version counters: a BatchNorm's kernels write its statistics and count nothing
                if not tensor.is_meta and not _equal(tensor, before):
                    tensor.copy_(before)


def _copied(name: str, value: Any) -> Any:
    """The contents of a container. Most are empty: torch gives every module a dozen, for hooks."""
    if type(value) not in _CONTAINERS:  # a registry of a kind of its own
        return copy.copy(value)
    return value.copy() if value or name in _REGISTRIES else ()


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    strided = a.layout is torch.strided
    return torch.equal(a, b) if strided else torch.equal(a.to_dense(), b.to_dense())


def is_configuration(value: Any) -> bool:
    """Whether a value is what transformers' models share and some write into: ``problem_type``, from the labels."""
    return type(value).__name__.endswith("Config") and "__dict__" in dir(type(value))


def _entries(container: Any) -> list[Any]:
    """Identities: values may be tensors, which have no plain answer to ``==``."""
    if isinstance(container, dict):
        return [(id(k), id(v)) for k, v in container.items()]
    if isinstance(container, set):
        return sorted(map(id, container))  # a copy may iterate in another order
    return [id(v) for v in container]


@contextlib.contextmanager
def unchanged(model: nn.Module, tensors: bool = True) -> Iterator[ModelState]:
    """Put every module's attributes, tensors and flags back afterwards."""
    state, modes = ModelState(model, tensors), Modes.here()
    try:
        yield state
    finally:
        modes.put_back()
        state.restore()


def python_draws() -> tuple[Any, Any]:
    """The states of Python's and numpy's generators, as values that compare."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate(), None
    kind, key, *rest = numpy.random.get_state()
    return random.getstate(), (kind, key.tobytes(), *rest)


@contextlib.contextmanager
def undrawn_in_python() -> Iterator[None]:
    """Let nothing that runs here draw from Python's or numpy's generators, nor seed them."""
    python, numpy, before = random.getstate(), sys.modules.get("numpy"), python_draws()
    state = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        if before != python_draws():  # else another thread's are left alone
            random.setstate(python)
            if numpy is not None and state is not None:
                numpy.random.set_state(state)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Let nothing that runs here draw from Python's, numpy's or torch's generators, nor seed them."""
    ours = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with undrawn_in_python():
            yield
    finally:
        torch.set_rng_state(ours)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


def others_draw() -> bool:
    """Whether another thread draws random numbers: whether states move while this one waits."""
    before = torch.get_rng_state(), python_draws()
    time.sleep(_WAIT)
    return not torch.equal(torch.get_rng_state(), before[0]) or python_draws() != before[1]


def seed(number: int) -> None:
    """Seed torch's generators, to be undone by `undrawn`: ``torch.manual_seed`` also seeds a GPU that is used later."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


@contextlib.contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Every module's own flag comes back, whatever mode it is put in."""
    flags = [(m, m.training) for model in models for m in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module's own flag comes back."""
    with modes_kept(model):
        model.eval()
        yield
