"""Which node every value of a recorded forward belongs to, and how a value becomes an argument of a node."""

from __future__ import annotations

import dataclasses
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, fx, nn

from graphaug.capture.names import CONSTANTS
from graphaug.capture.recording.sizes import Float, Int, is_tracked, plain
from graphaug.torch_private import FakeTensor, FakeTensorMode, is_functorch_wrapper

Key = tuple[str, Any]
_PLAIN = (bool, int, float, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout)
_PLAIN_TORCH = (torch.memory_format,)
_DEPTH = 4


class Ledger:
    """The origins of values: nodes of inputs, operations and modules, tensors that the model owns, constants.

    Args:
        root: the model.
        fake_mode: what makes its tensors fake.
        home: where tensors on the meta device are taken to lie.
        create: makes a node.
        refuse: makes the error of something that a graph cannot hold.
    """

    def __init__(
        self,
        root: nn.Module,
        fake_mode: FakeTensorMode,
        create: Callable[..., fx.Node],
        refuse: Callable[[str], Exception],
    ) -> None:
        self.fake_mode, self.create, self.refuse = fake_mode, create, refuse
        self.paths: dict[nn.Module, str] = {m: name for name, m in root.named_modules()}
        self.owned = tensor_names(root)
        self.constants: dict[str, Any] = {}
        self.home = torch.device("cpu")
        self.recorder: Any = None
        self._origins: dict[int, tuple[fx.Node, tuple[Key, ...]]] = {}
        self._whole: dict[int, tuple[fx.Node, tuple[Key, ...], Any]] = {}
        self._entries: dict[tuple[fx.Node, tuple[Key, ...]], fx.Node] = {}
        self._fakes: dict[int, Tensor] = {}
        self._kept: list[Any] = []

    # --- values as they come ------------------------------------------------------------------

    def claim(self, value: Any, node: fx.Node, keys: tuple[Key, ...] = ()) -> None:
        """Note that a value, and all that it holds, is found in ``node``."""
        self._kept.append(value)  # its id is its name: it may not be given to another object
        if isinstance(value, Tensor):
            self._origins[id(value)] = (node, keys)
            return
        if not _is_structure(value) or len(keys) > _DEPTH:
            return
        entries = list(_entries(value))
        self._whole[id(value)] = (node, keys, [id(v) for _, v in entries])
        for key, entry in entries:
            self.claim(entry, node, (*keys, key))

    def adopt(self, value: Any, node: fx.Node, keys: tuple[Key, ...] = ()) -> Any:
        """A value as opened code gets it from ``node``, with numbers that remember where they come from.

        What a module hands on as it is (its input, a parameter) becomes a tensor of its own, for another site.
        """
        kind = type(value)
        if isinstance(value, Tensor):
            if self.knows(value):
                value = value.view_as(value)
            self.claim(value, node, keys)
            return value
        if kind is int:
            return Int(self.recorder, value, lambda: self.entry(node, keys))
        if kind is float:
            return Float(self.recorder, value, lambda: self.entry(node, keys))
        if isinstance(value, np.ndarray):  # made anew in every call, and no constant
            self._kept.append(value)
            self._whole[id(value)] = (node, keys, _contents(value))
            return value
        if not _is_structure(value) or len(keys) > _DEPTH:
            return value
        fields = list(_entries(value))
        new = [self.adopt(v, node, (*keys, key)) for key, v in fields]
        if any(a is not v for a, (_, v) in zip(new, fields, strict=True)):
            value = _rebuilt(value, [k for k, _ in fields], new)
        self._kept.append(value)
        self._whole[id(value)] = (node, keys, _contents(value))
        return value

    def knows(self, value: Tensor) -> bool:
        """Whether a tensor has a node already, or is the model's."""
        return id(value) in self._origins or id(value) in self.owned

    def fake(self, tensor: Tensor) -> Tensor:
        """The fake that stands for a tensor of the model; a parameter's requires a gradient, whatever the flag."""
        if id(tensor) not in self._fakes:
            fake = self.fake_like(tensor)
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                fake.requires_grad_(True)  # what is differentiable is a question about the code
            self._fakes[id(tensor)] = fake
        return self._fakes[id(tensor)]

    def fake_like(self, tensor: Tensor) -> Tensor:
        """A fake of any tensor; one on the meta device is taken to lie where the others lie."""
        if not tensor.is_meta:
            return self.fake_mode.from_tensor(tensor)
        with self.fake_mode, torch.no_grad():
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.home)
            return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def evaluable(self, value: Any) -> Any:
        """Arguments as a function can run on them: numbers as they are on the example, the model's tensors as fakes."""
        if isinstance(value, Tensor):
            return self.fake(value) if id(value) in self.owned else value
        value = plain(value)
        kind = type(value)
        if kind in (tuple, list):
            new = [self.evaluable(v) for v in value]
            return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
        if kind is dict:
            filled = {k: self.evaluable(v) for k, v in value.items()}
            return value if all(filled[k] is value[k] for k in value) else filled
        return value

    # --- values as arguments of nodes -----------------------------------------------------------

    def entry(self, node: fx.Node, keys: tuple[Key, ...]) -> fx.Node:
        """The node of what lies in the value of ``node`` under these keys."""
        if not keys:
            return node
        if (node, keys) not in self._entries:
            parent = self.entry(node, keys[:-1])
            kind, key = keys[-1]
            function = getattr if kind == "attribute" else operator.getitem
            self._entries[node, keys] = self.create("call_function", function, (parent, key), {})
        return self._entries[node, keys]

    def node_of(self, value: Tensor) -> fx.Node:
        """The node of a tensor.

        Raises:
            CaptureError: nothing that was recorded made it.
        """
        if id(value) in self._origins:
            return self.entry(*self._origins[id(value)])
        if id(value) in self.owned:
            node = self.create("get_attr", self.owned[id(value)][1], (), {})
            self._origins[id(value)] = (node, ())
            return node
        if isinstance(value, FakeTensor):
            raise self.refuse(
                "it uses a tensor that no recorded function of torch made: one that a closed module keeps or a hook "
                "computed, or the result of a scripted function, of torch.func, or of code outside of Python"
            )
        if is_functorch_wrapper(value):
            raise self.refuse("it calls a transform of torch.func (vmap, grad) on it")
        return self.constant("tensor", value)

    def constant(self, kind: str, value: Any) -> fx.Node:
        """The node of an object that no module owns; the graph holds the object itself."""
        known = next((name for name, v in self.constants.items() if v is value), None)
        if known is None:
            known = f"{kind}_{len(self.constants)}"
            self.constants[known] = value
        node = self.create("get_attr", f"{CONSTANTS}.{known}", (), {})
        node.meta["value"] = value
        return node

    def lower(self, value: Any) -> Any:
        """What a node holds for a value of opened code.

        Raises:
            CaptureError: the graph cannot make it.
        """
        kind = type(value)
        if is_tracked(value):
            return value._fx_node()
        if isinstance(value, Tensor):
            return self.node_of(value)
        if kind in _PLAIN or isinstance(value, _PLAIN_TORCH):
            return value
        if isinstance(value, nn.Module):
            path = self.paths.get(value)
            if path is None or path == "":
                return self.constant("module", value)
            node = self.create("get_attr", path, (), {})
            node.meta["value"] = value
            return node
        whole = self._whole.get(id(value))
        if whole is not None and whole[2] == _contents(value):
            return self.entry(*whole[:2])
        if kind is slice:
            return slice(self.lower(value.start), self.lower(value.stop), self.lower(value.step))
        if kind is Size or kind is tuple:
            return tuple(map(self.lower, value))
        if kind is list:
            return list(map(self.lower, value))
        if kind is dict:
            return {k: self.lower(v) for k, v in value.items()}
        if isinstance(value, np.generic):
            return value.item()
        return self._lower_object(value)

    def _lower_object(self, value: Any) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            made = self.create("call_function", type(value), tuple(map(self.lower, value)), {})
        elif isinstance(value, dict) and hasattr(value, "__dataclass_fields__"):
            # a ModelOutput of transformers; its None fields stay out
            filled = {k: self.lower(v) for k, v in value.items() if v is not None}
            made = self.create("call_function", type(value), (), filled)
        elif isinstance(value, OrderedDict):
            made = self.create(
                "call_function", type(value), ({k: self.lower(v) for k, v in value.items()},), {}
            )
        elif isinstance(value, (int, float, str, range)):  # enumerations, subclasses of str
            return value if not isinstance(value, range) else self.constant("object", value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and holds(value, self._is_made):
            fields = {f.name: self.lower(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
            made = self.create("call_function", type(value), (), fields)
        else:
            return self.constant("object", value)
        return made

    def _is_made(self, value: Any) -> bool:
        return is_tracked(value) or (isinstance(value, Tensor) and (id(value) in self._origins))


def holds(value: Any, test: Callable[[Any], bool], depth: int = _DEPTH) -> bool:
    """Whether a test holds for anything inside of a value: entries of containers, attributes of objects."""
    if test(value):
        return True
    if depth == 0 or is_tracked(value) or isinstance(value, (Tensor, str, type, types.ModuleType, nn.Module)):
        return False
    if isinstance(value, types.FunctionType):
        return False
    if isinstance(value, Mapping):
        inner: Any = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        inner = list(value)
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    return any(holds(v, test, depth - 1) for v in inner)


def tensor_names(root: nn.Module) -> dict[int, tuple[Tensor, str]]:
    """Every tensor that a module of ``root`` owns, by identity: parameters, buffers, plain attributes."""
    names: dict[int, tuple[Tensor, str]] = {}
    for path, m in root.named_modules():
        owned = (m._parameters, m._buffers, vars(m))
        for name, tensor in ((k, v) for group in owned for k, v in group.items()):
            if isinstance(tensor, Tensor):
                names.setdefault(id(tensor), (tensor, f"{path}.{name}" if path else name))
    return names


def layout(value: Any, depth: int = 3) -> str:
    """What is where in a nested value: ``(Tensor, None)``, ``Output{logits: Tensor}``."""
    if isinstance(value, Tensor):
        return "Tensor"
    if value is None or isinstance(value, (bool, str)):
        return repr(value)
    if depth > 0 and isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {layout(v, depth - 1)}" for k, v in value.items()) + "}"
    if depth > 0 and isinstance(value, (tuple, list)):
        inner = ", ".join([layout(v, depth - 1) for v in value])
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return type(value).__name__


def _is_structure(value: Any) -> bool:
    """Whether a value may hold tensors: a container, or a plain object."""
    if is_tracked(value) or isinstance(
        value, (*_PLAIN, nn.Module, type, types.FunctionType, types.ModuleType, Tensor)
    ):
        return False
    return isinstance(value, (tuple, list, Mapping)) or hasattr(value, "__dict__")


def _contents(value: Any) -> list[Any]:
    """What tells whether a container was changed since: its entries by identity, an array's numbers."""
    return [value.tobytes()] if isinstance(value, np.ndarray) else [id(v) for _, v in _entries(value)]


def _entries(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(("item", k), v) for k, v in value.items()]
    if isinstance(value, (tuple, list)):
        return [(("item", i), v) for i, v in enumerate(value)]
    return [(("attribute", k), v) for k, v in getattr(value, "__dict__", {}).items()]


def _rebuilt(value: Any, keys: list[Key], new: list[Any]) -> Any:
    """The same structure with other entries; objects that are no plain containers are filled where they are."""
    kind = type(value)
    if isinstance(value, tuple):
        return kind(*new) if hasattr(value, "_fields") else kind(new)
    if kind is list:
        return new
    if kind in (dict, OrderedDict):
        return kind((k, v) for (_, k), v in zip(keys, new, strict=True))
    for (how, key), entry in zip(keys, new, strict=True):
        if how == "attribute":
            object.__setattr__(value, key, entry)
        else:
            value[key] = entry
    return value
