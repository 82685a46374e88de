"""Where the tensors of a recorded forward come from, and what stands for them in its record.

A tensor is told by its origin: an input, a tensor of the model, an earlier result, or, where nothing but plain numbers
went into it, its value.
"""

from __future__ import annotations

import contextlib
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.recording.values.inside import attributes_of
from graphaug.proof.shadow.records import Token

_LARGE = 1 << 24
"""Values of more numbers than this are told apart by identity."""


class Origins:
    """The origins of tensors, by the memory in which they lie.

    Args:
        named: tensor -> its name: inputs, parameters, buffers and other tensors of the model.
        graph_ids: numbers of gradient graphs, shared by the records that are to be compared.

    Attributes:
        paused: whether operations are ours, and none of the forward's.
    """

    def __init__(self, named: Mapping[str, Tensor], graph_ids: dict[Token, int]) -> None:
        self.paused = False
        self._origin: dict[int, Token] = {}
        self._keep: list[Any] = []  # ids name objects: none may be given to another
        self._memory: dict[int, Token] = {}  # address -> what owns it
        self._fresh: set[int] = set()  # memory made in the forward
        self._plain: set[int] = set()  # of which all went in as plain numbers
        self._within: set[int] = set()  # values whose token is being made
        self._told: dict[int, int] = {}  # objects of that token, in the order in which they were met
        self._graph_ids, self._nodes = graph_ids, dict[int, int]()
        for name, tensor in named.items():
            self._name(tensor, ("named", name))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Take what runs in this block for ours."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    # --- what is noted --------------------------------------------------------------------------

    def named(self, tensor: Tensor, token: Token) -> None:
        """Note a tensor that is there beside the forward, by what tells it."""
        self._name(tensor, ("named", token))

    def _name(self, tensor: Tensor, token: Token) -> None:
        self._keep.append(tensor)
        self._origin[id(tensor)] = token
        if place := self.address(tensor):
            self._memory.setdefault(place, token)

    def made(self, tensor: Tensor, token: Token) -> None:
        """Note a result of the forward."""
        place = self.address(tensor)
        self._plain.discard(place)
        if place not in self._memory:  # and no view of what was there before
            self._fresh.add(place)
        self._name(tensor, token)

    def made_of_numbers(self, tensor: Tensor) -> None:
        """Note a tensor into which nothing but plain numbers went: its value tells it."""
        place = self.address(tensor)
        self._keep.append(tensor)
        self._fresh.add(place)
        self._plain.add(place)
        self._memory.setdefault(place, ("number", place))

    def written(self, tensor: Tensor, token: Token) -> None:
        """Note that an operation wrote into a tensor: from now on it is no mere number."""
        place = self.address(tensor)
        if place in self._plain:
            self._plain.discard(place)
            self._memory[place] = token

    def moved(self, tensor: Tensor, place: int) -> None:
        """Note that a tensor's memory lies elsewhere now: at the old place anything may be made."""
        now = self.address(tensor)
        if now == place:
            return
        for known in (self._fresh, self._plain):
            if place in known:
                known.discard(place)
                known.add(now)
        if place in self._memory:
            self._memory[now] = self._memory.pop(place)

    # --- what is asked --------------------------------------------------------------------------

    def address(self, tensor: Tensor) -> int:
        """Where a tensor's memory begins; of one without memory, a number of its own."""
        before, self.paused = self.paused, True
        try:
            return tensor.untyped_storage().data_ptr() or id(tensor)
        except (NotImplementedError, RuntimeError):
            return id(tensor)
        finally:
            self.paused = before

    def is_fresh(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory was made in the forward."""
        return self.address(tensor) in self._fresh

    def is_plain(self, tensor: Tensor) -> bool:
        """Whether nothing but plain numbers went into a tensor."""
        return self.address(tensor) in self._plain

    def token(self, value: Any) -> Token:
        """What stands for an argument: an origin for a tensor, itself for a plain value."""
        if isinstance(value, Tensor):
            return self.of_tensor(value)
        if id(value) in self._within:
            return "itself"  # an object that holds itself
        self._within.add(id(value))
        try:
            return self._of_value(value)
        finally:
            self._within.discard(id(value))
            if not self._within:
                self._told.clear()

    def _of_value(self, value: Any) -> Token:
        if isinstance(value, Mapping):
            kind = type(value).__name__.removeprefix("immutable_")
            return kind, tuple((str(k), self.token(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(map(self.token, value))
        if isinstance(value, (set, frozenset)):
            return "set", tuple(sorted(repr(self.token(v)) for v in value))
        if isinstance(value, slice):
            return "slice", self.token(value.start), self.token(value.stop), self.token(value.step)
        if value is None or isinstance(value, (str, bytes, torch.dtype, torch.device, torch.layout)):
            return value
        if isinstance(value, (bool, int, float, complex)):
            return type(value).__name__, repr(value)
        if isinstance(value, torch.memory_format):
            return str(value)
        if isinstance(value, torch.Generator):
            number = self._graph_ids.setdefault(("generator", id(value)), len(self._graph_ids))
            return f"generator {number}"  # one that a forward makes anew is another in each call
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        held = None if callable(value) or isinstance(value, (type, nn.Module)) else attributes_of(value)
        if held is not None:
            if id(value) in self._told:
                return "again", self._told[id(value)]  # to one object more ways may lead than can be gone
            self._told[id(value)] = len(self._told)
            return type(value).__qualname__, tuple((k, self.token(v)) for k, v in held.items())
        return "object", type(value).__qualname__, id(value) if isinstance(value, nn.Module) else 0

    def of_tensor(self, tensor: Tensor) -> Token:
        """What stands for a tensor."""
        found = self._origin.get(id(tensor))
        place = self.address(tensor)
        if place in self._plain or (found is None and place not in self._memory):
            return self._value(tensor, place)
        if found is not None:
            return found
        owner = self._memory[place]  # a name for memory that is known: tensor.data, a view made in C++
        strided = tensor.layout is torch.strided
        lies = (tensor.stride(), tensor.storage_offset()) if strided else ()
        return "view", owner, tensor.dtype, tuple(tensor.shape), lies

    def _value(self, tensor: Tensor, place: int) -> Token:
        """Of a tensor that only numbers went into, or that the code got from elsewhere, the value counts."""
        self._keep.append(tensor)
        kind = ("value", tensor.dtype, tuple(tensor.shape), tensor.device.type)
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.numel() > _LARGE:
            return (*kind, id(tensor) if place not in self._fresh else 0)
        with self.pause():
            plain = tensor.detach().cpu().contiguous()
            plain = torch.view_as_real(plain) if plain.is_complex() else plain
            data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return (*kind, hashlib.blake2b(data, digest_size=16).hexdigest())

    def gradient(self, tensor: Tensor) -> int:
        """A number for the graph of gradients behind a tensor; equal graphs have equal numbers."""
        if tensor.grad_fn is None:
            leaf = ("leaf", tensor.requires_grad)
            return self._graph_ids.setdefault(leaf, len(self._graph_ids))
        stack = [tensor.grad_fn]
        while stack:
            node = stack[-1]
            if id(node) in self._nodes:
                stack.pop()
                continue
            self._keep.append(node)
            waiting = [n for n, _ in node.next_functions if n is not None and id(n) not in self._nodes]
            if waiting:
                stack.extend(waiting)
                continue
            below = tuple((None if n is None else self._nodes[id(n)], i) for n, i in node.next_functions)
            variable = getattr(node, "variable", None)
            own = self.of_tensor(variable) if isinstance(variable, Tensor) else None
            shape: Token = (node.name(), own, below, getattr(type(node), "_forward_cls", None))
            self._nodes[id(node)] = self._graph_ids.setdefault(shape, len(self._graph_ids))
            stack.pop()
        return self._nodes[id(tensor.grad_fn)]
