"""States that a forward may leave changed: of generators, of tensors beside their numbers, of caches, of modes."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.torch_private import UninitializedTensorMixin


class Generator:
    """A generator of random numbers."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self._name, self._read, self._write = name, read, write
        self._state = read()
        self._before = repr(_whole(self._state))

    def changes(self) -> Iterator[tuple[str, Any]]:
        """A hash of its state, if it drew."""
        if (state := repr(_whole(self._read()))) != self._before:
            yield f"the generator {self._name}", hash(state)

    def restore(self) -> None:
        """Set its state."""
        self._write(self._state)


class TensorFacts:
    """Where a tensor lies, and what else code can change of it without an operation; its numbers are not looked at."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._data = name, tensor, tensor.detach()
        self._before = _facts(tensor)

    def changes(self) -> Iterator[tuple[str, Any]]:
        """Its shape, whether it requires a gradient and how many hooks it has, if they changed or it lies elsewhere."""
        if (now := _facts(self._tensor)) != self._before:
            yield f"{self._name} (what is known of the tensor)", now[1:]

    def restore(self) -> None:
        """Set its memory and its flag; hooks stay."""
        place, _, requires_grad, _ = self._before
        if _facts(self._tensor)[0] != place:
            self._tensor.data = self._data
        if self._tensor.requires_grad != requires_grad:
            self._tensor.requires_grad_(requires_grad)


class Cache:
    """A table of `functools.lru_cache`: it may be filled, and values of a run in the shadow are none of the user's."""

    def __init__(self, table: Any) -> None:
        self._table, self._misses = table, table.cache_info().misses

    def changes(self) -> Iterator[tuple[str, Any]]:
        """Nothing: a value that is kept is no other than one that is computed."""
        return iter(())

    def restore(self) -> None:
        """Empty it, if anything came in."""
        if self._table.cache_info().misses != self._misses:
            self._table.cache_clear()


class Modes:
    """Whether each module is in training mode."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self.note()

    def note(self) -> None:
        """Take the modes that the modules are in now as what they were."""
        self._before = [m.training for m in self._modules]

    def changes(self) -> Iterator[tuple[str, Any]]:
        """All modes, if one is another."""
        if (now := [m.training for m in self._modules]) != self._before:
            yield "training of a module", tuple(now)

    def restore(self) -> None:
        """Set every mode."""
        for module, training in zip(self._modules, self._before, strict=True):
            module.training = training


def _facts(tensor: Tensor) -> tuple[int, tuple[int, ...], bool, int]:
    if isinstance(tensor, UninitializedTensorMixin):
        return 0, (), False, 0
    place = tensor.data_ptr() if tensor.layout is torch.strided else 0
    return place, tuple(tensor.shape), tensor.requires_grad, len(tensor._backward_hooks or ())


def _whole(state: Any) -> Any:
    """A state whose ``repr`` shows all of it: those of arrays leave entries out."""
    if isinstance(state, dict):
        return {k: _whole(v) for k, v in state.items()}
    if isinstance(state, tuple):
        return tuple(map(_whole, state))
    return state.tolist() if hasattr(state, "tolist") else state


def generator_of(value: Any, name: str) -> Generator | None:
    """A generator of random numbers of any package, watched; None of anything else."""
    numpy = sys.modules.get("numpy")
    read: Any
    write: Any
    if isinstance(value, random.Random):
        read, write = value.getstate, value.setstate
    elif isinstance(value, torch.Generator):
        read, write = value.get_state, value.set_state
    elif numpy is not None and isinstance(value, numpy.random.Generator):
        source = value.bit_generator
        read, write = (lambda: source.state), functools.partial(setattr, source, "state")
    elif numpy is not None and isinstance(value, numpy.random.RandomState):
        read, write = value.get_state, value.set_state
    else:
        return None
    return Generator(name, read, write)
