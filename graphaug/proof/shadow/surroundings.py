"""What a forward may leave changed outside of torch: attributes, containers, closures, globals, generators, tables.

Snapshot, differences, and everything back as it was.
"""

from __future__ import annotations

import collections
import copy
import functools
import gc
import itertools
import operator
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.torch_private import UninitializedTensorMixin

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (
    list,
    dict,
    set,
    collections.deque,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
)
_MOST = 20_000
"""Objects that are looked at."""
_OF_TORCH = (
    "torch",
    "numpy",
    "builtins",
    "typing",
    "functools",
    "graphaug",
    "collections",
    "logging",
    "warnings",
)
_SKIPPED = frozenset({"training", "forward"})
"""Of a module's attributes: the mode is kept apart, and a stand-in's forward is none of the model's."""
_REGISTRIES = frozenset(vars(nn.Module()))


class Surroundings:
    """The state that the code of some modules can reach.

    Args:
        model: all of its modules' attributes are watched.
        opened: those whose code runs: what their functions reach (closures, globals, default arguments, classes) is
            watched as well.
    """

    def __init__(self, model: nn.Module, opened: list[nn.Module]) -> None:
        self._modules: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._slots: list[tuple[str, Any, Any]] = []
        self._generators: list[tuple[str, Callable[[], Any], Callable[[Any], Any], Any]] = []
        self._cells: list[tuple[str, types.CellType, Any]] = []
        self._bindings: list[tuple[str, dict[str, Any], str, Any]] = []
        self._attributes: list[tuple[str, Any, str, Any]] = []
        self._seen: set[int] = set()
        self._tensors: list[tuple[str, Tensor, Any]] = []
        for path, module in model.named_modules():
            self._module(path, module)
        for module in opened:
            self._code(module)
        self._tables = [(t, t.cache_info()) for t in _tables()]
        self._of_modes = list(model.modules())
        self.note_modes()

    def note_modes(self) -> None:
        """Take the modes that the modules are in now as what they were."""
        self._modes = [m.training for m in self._of_modes]

    # --- what is watched ----------------------------------------------------------------------------

    def _module(self, path: str, module: nn.Module) -> None:
        self._seen.add(id(module))
        held = vars(module)
        self._modules.append((path, held, {k: v for k, v in held.items() if k not in _SKIPPED}))
        for name, value in list(held.items()):
            where = f"{path}.{name}".removeprefix(".")
            if name in _REGISTRIES and isinstance(value, dict):
                self._slot(path, value)
                for key, entry in list(value.items()):
                    if isinstance(entry, Tensor):
                        self._tensors.append(
                            (f"{where}".removesuffix(name) + key, entry, (entry.detach(), *_of_tensor(entry)))
                        )
                    elif callable(entry) and not isinstance(entry, nn.Module):
                        self._walk(entry, f"{where} hook", 3)
            elif not isinstance(value, nn.Module):
                self._walk(value, where, 4)

    def _code(self, module: nn.Module) -> None:
        for cls in type(module).__mro__:
            if cls.__module__.partition(".")[0] in _OF_TORCH or id(cls) in self._seen:
                continue
            self._seen.add(id(cls))
            for name, value in list(vars(cls).items()):
                if name.startswith("__") and name not in ("__call__", "__getattr__"):
                    continue
                value = getattr(value, "__func__", value)
                if not callable(value) and not isinstance(value, (property, types.MemberDescriptorType)):
                    self._attributes.append((f"{cls.__name__}.{name}", cls, name, value))
                self._walk(value.fget if isinstance(value, property) else value, f"{cls.__name__}.{name}", 4)

    def _slot(self, name: str, holder: Any) -> None:
        self._slots.append((name, holder, dict(holder) if isinstance(holder, dict) else copy.copy(holder)))

    def _walk(self, value: Any, name: str, depth: int) -> None:
        if depth == 0 or isinstance(value, (*_PLAIN, types.ModuleType)) or id(value) in self._seen:
            return
        if len(self._seen) > _MOST:
            return
        self._seen.add(id(value))
        if self._generator(value, name) or isinstance(value, (Tensor, type, nn.Module)):
            return
        if isinstance(value, types.MethodType):
            self._walk(value.__func__, name, depth)
            self._walk(value.__self__, name, depth - 1)
        elif isinstance(value, types.FunctionType):
            self._function(value, name, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._walk(part, name, depth - 1)
        elif hasattr(value, "__wrapped__"):
            self._walk(value.__wrapped__, name, depth)
        elif type(value) in _CONTAINERS:
            self._slot(name, value)
            for entry in list(value.values() if isinstance(value, dict) else value)[:1000]:
                self._walk(entry, name, depth - 1)
        elif isinstance(value, tuple):
            for entry in value[:1000]:
                self._walk(entry, name, depth - 1)
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _OF_TORCH:
            self._slot(name, vars(value))
            for key, entry in list(vars(value).items()):
                self._walk(entry, f"{name}.{key}", depth - 1)

    def _function(self, function: types.FunctionType, name: str, depth: int) -> None:
        if (function.__module__ or "").partition(".")[0] in _OF_TORCH:
            return
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen and (content := _content(cell)) is not _NOTHING:
                self._seen.add(id(cell))
                self._cells.append((f"{variable} of {name}", cell, content))
                self._walk(content, f"{variable} of {name}", depth - 1)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._walk(default, f"a default of {name}", depth - 1)
        if vars(function):
            self._slot(name, vars(function))
        inner = [
            function.__code__,
            *(c for c in function.__code__.co_consts if isinstance(c, types.CodeType)),
        ]
        for variable in {n for code in inner for n in code.co_names}:
            scope = function.__globals__
            if variable not in scope:
                continue
            value = scope[variable]
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in {*_OF_TORCH, *sys.stdlib_module_names}:
                    for attribute in {n for code in inner for n in code.co_names} & vars(value).keys():
                        self._binding(f"{variable}.{attribute}", vars(value), attribute, depth)
            else:
                self._binding(variable, scope, variable, depth)

    def _binding(self, name: str, scope: dict[str, Any], variable: str, depth: int) -> None:
        value = scope[variable]
        self._bindings.append((name, scope, variable, value))
        if isinstance(value, type):
            if issubclass(value, nn.Module) or id(value) in self._seen or value.__module__ in _OF_TORCH:
                return
            self._seen.add(id(value))
            for key, entry in list(vars(value).items()):
                if not key.startswith("__") and not callable(entry):
                    self._attributes.append((f"{name}.{key}", value, key, entry))
                    self._walk(entry, f"{name}.{key}", depth - 1)
        else:
            self._walk(value, name, depth - 1)

    def _generator(self, value: Any, name: str) -> bool:
        numpy = sys.modules.get("numpy")
        read: Callable[[], Any]
        write: Callable[[Any], Any]
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
            return False
        state = read()
        self._generators.append((name, read, write, (repr(_whole(state)), state)))
        return True

    # --- what changed -------------------------------------------------------------------------------

    def changes(self) -> Iterator[tuple[str, Any]]:
        """What is not as it was: (its name, what it is now)."""
        for name, holder, before in (*self._modules, *self._slots):
            if not _untouched(holder, before):
                for key, now in _differences(holder, before):
                    if key[1:] not in _SKIPPED:
                        yield f"{name}{key}".removeprefix("."), now
        if (modes := [m.training for m in self._of_modes]) != self._modes:
            yield "training of a module", tuple(modes)
        for name, read, _, before in self._holders():
            if (now := read()) is not before:
                yield name, now
        for name, read, _, before in self._generators:
            if (state := repr(_whole(read()))) != before[0]:
                yield f"the generator {name}", hash(state)
        for name, tensor, before in self._tensors:
            if _of_tensor(tensor) != before[1:]:
                yield f"{name} (what is known of the tensor)", _of_tensor(tensor)[1:]

    def _holders(self) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Any], Any]]:
        for name, cell, before in self._cells:
            yield (
                name,
                functools.partial(_content, cell),
                functools.partial(setattr, cell, "cell_contents"),
                before,
            )
        for name, scope, variable, before in self._bindings:
            yield (
                name,
                functools.partial(scope.get, variable),
                functools.partial(scope.__setitem__, variable),
                before,
            )
        for name, cls, key, before in self._attributes:
            yield name, functools.partial(vars(cls).get, key), functools.partial(setattr, cls, key), before

    def restore(self) -> None:
        """Put everything back."""
        for module, training in zip(self._of_modes, self._modes, strict=True):
            module.training = training
        for _, held, before in self._modules:
            if not _untouched(held, before):
                for key in [k for k in held if k not in before and k not in _SKIPPED]:
                    del held[key]
                held.update(before)
        for _, holder, before in self._slots:
            if not _untouched(holder, before):
                holder.clear()
                holder.extend(before) if isinstance(holder, (list, collections.deque)) else holder.update(
                    before
                )
        for _, read, write, before in self._holders():
            if read() is not before:
                write(before)
        for _, _, write, before in self._generators:
            write(before[1])
        for _, tensor, before in self._tensors:
            now = _of_tensor(tensor)
            if now[0] != before[1]:
                tensor.data = before[0]
            if tensor.requires_grad != before[3]:
                tensor.requires_grad_(before[3])
        for table, before in self._tables:
            if table.cache_info().misses != before.misses:
                table.cache_clear()  # values of this run are none of the user's


_NOTHING = object()


def _whole(state: Any) -> Any:
    """A state whose ``repr`` shows all of it: those of arrays leave entries out."""
    if isinstance(state, dict):
        return {k: _whole(v) for k, v in state.items()}
    if isinstance(state, tuple):
        return tuple(map(_whole, state))
    return state.tolist() if hasattr(state, "tolist") else state


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _NOTHING


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies, and what else code can change of it without an operation."""
    if isinstance(tensor, UninitializedTensorMixin):
        return 0, (), False, 0
    hooks = tensor._backward_hooks
    return tensor.data_ptr(), tuple(tensor.shape), tensor.requires_grad, len(hooks or ())


def _untouched(holder: Any, before: Any) -> bool:
    """Whether a container holds the very objects that it held; quick, and no comparison of values."""
    if not holder and not before:
        return True
    if isinstance(holder, dict):
        return all(map(operator.is_, map(holder.get, before), before.values())) and (
            len(holder.keys() - _SKIPPED) == len(before)
        )
    if isinstance(holder, set):
        return bool(holder == before)
    return len(holder) == len(before) and all(map(operator.is_, holder, before))


def _differences(holder: Any, before: Any) -> Iterator[tuple[str, Any]]:
    """The entries that are others than before, with what they are now."""
    if isinstance(holder, dict):
        for key, now in holder.items():
            if key not in before or not _is(now, before[key]):
                yield f".{key}", now
        yield from ((f".{key} (deleted)", None) for key in before if key not in holder)
    elif isinstance(holder, set):
        if holder != before:
            yield "", holder
    elif len(holder) != len(before) or not all(map(_is, holder, before)):
        yield "", list(holder)


def _is(a: Any, b: Any) -> bool:
    """Whether two entries are the same; plain values that are equal are."""
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and (a == b or a != a))


def _tables() -> list[Any]:
    """The tables of `functools.lru_cache` outside of torch."""
    kind = functools._lru_cache_wrapper
    others = (*_OF_TORCH, "sympy")
    alive = gc.get_objects()  # millions of them: no loop in Python
    of_kind = itertools.compress(alive, map(operator.is_, map(type, alive), itertools.repeat(kind)))
    return [t for t in of_kind if (t.__module__ or "").partition(".")[0] not in others]
