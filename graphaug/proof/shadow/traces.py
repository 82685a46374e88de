"""A record of one forward: the closed modules it calls and the operations between them, with all they depend on.

Two forwards with equal records compute the same. Operations are recorded as PyTorch dispatches them, so that it does
not matter how Python spelled them. Where a tensor comes from is told by its origin: an input, a tensor of the model, an
earlier result, or, where nothing but plain numbers went into it, its value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.user_code import user_line

Token = Any
"""Something that compares: what stands for an argument in a record."""


@dataclass
class Entry:
    """One call of a closed module, one operation, or one change of a tensor that is no operation.

    ``modes`` are what surrounds it (gradients, autocast); ``effect`` says that it matters even if nobody uses its
    results: it draws, writes, calls a module, or hands a number to Python.
    """

    name: str
    args: Token
    modes: tuple[Any, ...]
    line: str
    effect: bool
    reads: frozenset[int] = frozenset()


@dataclass
class Record:
    """What one forward did, and what it returned."""

    entries: list[Entry] = field(default_factory=list)
    output: Token = None
    values: list[Tensor] = field(default_factory=list)
    """The tensors that were returned, to compare their values."""
    unseen: str = ""
    """What was done to a tensor that no record can follow, if anything was."""
    left: dict[str, Token] = field(default_factory=dict)
    """What was left changed, by its place."""


@dataclass(frozen=True)
class Result:
    """Stands for a tensor that an entry made."""

    entry: int
    index: int
    view: tuple[Any, ...] = ()


# Python sees the numbers, or the memory itself: what is done with them is in no record
_UNSEEN = {
    *(
        "numpy",
        "__array__",
        "tolist",
        "data_ptr",
        "__dlpack__",
        "untyped_storage",
        "storage",
        "apply_",
        "map_",
    ),
    *("map2_", "__deepcopy__", "__reduce_ex__", "_typed_storage", "set_"),
}
# changes of a tensor that are no operations
_CHANGES = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "requires_grad_"}
_SET = {"data", "requires_grad", "grad"}
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero", "item"}
_LARGE = 1 << 24
"""Values of more numbers than this are told apart by identity."""


class Recorder(TorchDispatchMode):
    """Records what runs inside of it.

    Args:
        named: tensor -> its name: inputs, parameters, buffers and other tensors of the model.
        graph_ids: numbers of gradient graphs, shared by the records that are to be compared.
    """

    def __init__(self, named: Mapping[str, Tensor], graph_ids: dict[Token, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record()
        self.calls = 0
        """Closed modules that were called."""
        self._origin: dict[int, Token] = {}
        self._keep: list[Any] = []
        self._memory: dict[int, Token] = {}  # address -> what owns it
        self._fresh: set[int] = set()  # memory made here
        self._plain: set[int] = set()  # of which all went in as plain numbers
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._graph_ids, self._nodes = graph_ids, dict[int, int]()
        self._busy = False
        self.functions = _Functions(self)
        for name, tensor in named.items():
            self.name(tensor, ("named", name))

    # --- origins --------------------------------------------------------------------------------

    def name(self, tensor: Tensor, token: Token) -> None:
        """Note where a tensor comes from."""
        self._keep.append(tensor)
        self._origin[id(tensor)] = token
        place = self._address(tensor)
        if place and place not in self._memory:
            self._memory[place] = token

    def token(self, value: Any) -> Token:
        """What stands for an argument: an origin for a tensor, itself for a plain value."""
        if isinstance(value, Tensor):
            return self._tensor(value)
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
        if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, (type, nn.Module)):
            return type(value).__qualname__, tuple((k, self.token(v)) for k, v in vars(value).items())
        return "object", type(value).__qualname__, id(value) if isinstance(value, nn.Module) else 0

    def _tensor(self, tensor: Tensor) -> Token:
        found = self._origin.get(id(tensor))
        place = self._address(tensor)
        if place in self._plain or (found is None and place not in self._memory):
            return self._value(tensor, place)
        if found is not None:
            return found
        owner = self._memory[place]  # a name for memory that is known: tensor.data, a view made in C++
        return "view", owner, tensor.dtype, tuple(tensor.shape), _layout(tensor)

    def _value(self, tensor: Tensor, place: int) -> Token:
        """Of a tensor that only numbers went into, or that the code got from elsewhere, the value counts."""
        self._keep.append(tensor)
        kind = ("value", tensor.dtype, tuple(tensor.shape), tensor.device.type)
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.numel() > _LARGE:
            return (*kind, id(tensor) if place not in self._fresh else 0)
        with self.paused():
            plain = tensor.detach().cpu().contiguous()
            plain = torch.view_as_real(plain) if plain.is_complex() else plain
            data = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else None
        return (*kind, hashlib.blake2b(b"" if data is None else data.tobytes(), digest_size=16).hexdigest())

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
            own = self._tensor(variable) if isinstance(variable, Tensor) else None
            shape: Token = (node.name(), own, below, getattr(type(node), "_forward_cls", None))
            self._nodes[id(node)] = self._graph_ids.setdefault(shape, len(self._graph_ids))
            stack.pop()
        return self._nodes[id(tensor.grad_fn)]

    # --- entries ----------------------------------------------------------------------------------

    def add(self, name: str, args: Token, results: Iterator[Tensor] | list[Tensor], *, effect: bool) -> int:
        """Add an entry; its results have it as their origin from now on."""
        number = len(self.record.entries)
        modes = (
            ("gradients", torch.is_grad_enabled()),
            ("autocast", *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))),
            ("inference", torch.is_inference_mode_enabled()),
        )
        entry = Entry(name, args, modes, user_line(), effect, frozenset(_results(args)))
        self.record.entries.append(entry)
        for index, tensor in enumerate(results):
            place = self._address(tensor)
            self._plain.discard(place)
            if place not in self._memory:  # and no view of what was there before
                self._fresh.add(place)
            self.name(tensor, Result(number, index))
        return number

    def unseen(self, what: str) -> None:
        """Note what the record cannot follow; the first is kept."""
        self.record.unseen = self.record.unseen or f"{what}{user_line()}"

    def is_plain(self, tensor: Tensor) -> bool:
        """Whether nothing but plain numbers went into a tensor."""
        return self._address(tensor) in self._plain

    def paused(self) -> _Paused:
        """Record nothing in this block."""
        return _Paused(self)

    def restore(self) -> None:
        """Put back the contents of every tensor that was written and that was not made here."""
        with torch.no_grad():
            for tensor, before in self._saved.values():
                tensor.copy_(before)

    def _address(self, tensor: Tensor) -> int:
        """Where a tensor's memory begins; of one without memory, a number of its own."""
        before, self._busy = self._busy, True
        try:
            return tensor.untyped_storage().data_ptr() or id(tensor)
        except (NotImplementedError, RuntimeError):
            return id(tensor)
        finally:
            self._busy = before

    def _save(self, tensor: Tensor) -> None:
        place = self._address(tensor)
        if place and place not in self._fresh and place not in self._saved:
            with self.paused(), torch.no_grad():
                whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                whole.set_(tensor.untyped_storage())  # all of the memory, not just what is seen of it
                self._saved[place] = (whole, whole.clone())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        written = _written(func, args, kwargs)
        inputs = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        plain = not drawn and all(self._address(t) in self._plain or t.numel() == 0 for t in inputs)
        if plain and inputs and any(self._address(t) not in self._plain for t in inputs):
            plain = False  # an empty tensor of the model's
        for tensor in written:
            self._save(tensor)
        tokens = None if plain else (self.token(args), self.token(kwargs), self._places(written))
        result = func(*args, **kwargs)
        made = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        new = [t for t in made if not any(t is w for w in written)]
        if plain:
            self._made_of_numbers(name, new, inputs)
            return result
        effect = bool(written) or drawn or (name in _NUMBERS and not self._is_certain(tokens))
        number = self.add(str(func), tokens, new, effect=effect)
        for tensor in written:
            place = self._address(tensor)
            if place in self._plain:  # from now on it is no mere number
                self._plain.discard(place)
                self._memory[place] = Result(number, -1)
        return result

    def _is_certain(self, tokens: Token) -> bool:
        """Whether Python asks for ``torch.rand(...) < number`` where no draw from [0, 1) makes a difference."""
        compared = self._made_by(tokens[0][0])
        if compared is None or compared.name != "aten.lt.Scalar":
            return False
        draw, bound = compared.args[0]
        made = self._made_by(draw)
        while made is not None and made.name == "aten.detach.default":
            made = self._made_by(made.args[0][0])
        return made is not None and made.name == "aten.rand.default" and not 0 < float(bound[1]) < 1

    def _made_by(self, token: Token) -> Entry | None:
        return self.record.entries[token.entry] if isinstance(token, Result) else None

    def _made_of_numbers(self, name: str, made: list[Tensor], inputs: list[Tensor]) -> None:
        for tensor in made:
            place = self._address(tensor)
            self._keep.append(tensor)
            self._fresh.add(place)
            self._plain.add(place)
            self._memory.setdefault(place, ("number", place))
            if name in _EMPTY:  # whatever lay there, the same in every run
                with self.paused():
                    tensor.zero_()

    def _places(self, written: list[Tensor]) -> Token:
        """Of what is written: made in this call, or there before it."""
        return tuple("fresh" if self._address(t) in self._fresh else "kept" for t in written)

    def __enter__(self) -> Any:
        entered = super().__enter__()  # type: ignore[no-untyped-call]
        self.functions.__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *error: Any) -> None:
        self.functions.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]


class _Paused:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        self._before, self._recorder._busy = self._recorder._busy, True

    def __exit__(self, *error: object) -> None:
        self._recorder._busy = self._before


class _Functions(TorchFunctionMode):
    """Notes the few functions of a tensor that are dispatched as no operation."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self._recorder
        if recorder._busy:
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__set__", "__delete__"):
            name = (resolve_name(func) or "").split(".")[-2]
            if name in _SET:
                what = "requires_grad" if name == "requires_grad" else f"set {name}"
                recorder.add(what, recorder.token(list(args)), [], effect=True)
        elif name == "requires_grad_":
            value = args[1] if len(args) > 1 else (kwargs or {}).get("requires_grad", True)
            recorder.add("requires_grad", recorder.token([args[0], value]), [], effect=True)
        elif name in _CHANGES:
            recorder.add(name, recorder.token(list(args)), [], effect=True)
        elif name in _UNSEEN and args and isinstance(args[0], Tensor) and not recorder.is_plain(args[0]):
            recorder.unseen(f"Tensor.{name} hands its numbers to other code than torch's")
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes into."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return found


def _layout(tensor: Tensor) -> Token:
    return (tensor.stride(), tensor.storage_offset()) if tensor.layout is torch.strided else ()


def _results(token: Token) -> Iterator[int]:
    """The entries whose results a token names."""
    if isinstance(token, Result):
        yield token.entry
    elif isinstance(token, tuple):
        for part in token:
            yield from _results(part)


def live(record: Record) -> list[int]:
    """The entries that matter: those with an effect, and what they and the output are computed from."""
    wanted = {i for i, e in enumerate(record.entries) if e.effect} | set(_results(record.output))
    wanted |= {i for token in record.left.values() for i in _results(token)}
    stack = list(wanted)
    while stack:
        for below in record.entries[stack.pop()].reads - wanted:
            wanted.add(below)
            stack.append(below)
    return sorted(wanted)


def renumbered(token: Token, numbers: Mapping[int, int]) -> Token:
    """A token with the entries that it names numbered anew."""
    if isinstance(token, Result):
        return Result(numbers.get(token.entry, -1), token.index, token.view)
    if isinstance(token, tuple):
        return tuple(renumbered(part, numbers) for part in token)
    return token
