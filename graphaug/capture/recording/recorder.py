"""The recorder: a model's forward on fake tensors, and the functions of torch that opened code calls as a graph."""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Size, Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphaug import torch_private
from graphaug.capture.dataflow import reads_metadata, why_unknown
from graphaug.capture.names import PLAIN_NAMES, Assumption, mark
from graphaug.capture.recording import operations
from graphaug.capture.recording.leaves import DATA_DEPENDENT, Leaves, flop_counter
from graphaug.capture.recording.ledger import Ledger, layout
from graphaug.capture.recording.sizes import (
    DATA,
    Float,
    Handle,
    Int,
    Text,
    Tracked,
    doubtful,
    is_tracked,
    plain,
    unknown,
)
from graphaug.capture.signature import Signature
from graphaug.capture.target import Target
from graphaug.capture.user_code import is_internal, user_line
from graphaug.capture.values import UNKNOWN, assume, describe, value_of
from graphaug.errors import CaptureError
from graphaug.torch_private import FakeTensorMode

_IS_GRAD_ENABLED = torch.is_grad_enabled  # itself, also while it is patched
_UNNAMED = {assume, mark, layout, torch_private.set_grad_enabled, _IS_GRAD_ENABLED, getattr, builtins.len}


class Recorder(TorchFunctionMode):
    """A function mode that records what opened code calls as nodes of an fx graph.

    Args:
        root: the model.
        signature: its inputs, with examples.
        count_flops: note each node's FLOPs.
    """

    def __init__(self, root: nn.Module, signature: Signature, *, count_flops: bool) -> None:
        super().__init__()
        self.root, self.signature, self.count_flops = root, signature, count_flops
        self.graph = fx.Graph()
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.ledger = Ledger(root, self.fake_mode, self.create, self.refuse)
        self.ledger.recorder = self
        self.leaves = Leaves(self.ledger)
        self.assumptions: dict[fx.Node, Assumption] = {}
        self.frames: list[Any] = []
        self.refused: CaptureError | None = None
        self.inside = 0
        self._from_input: set[fx.Node] = set()
        self._reads: dict[tuple[Any, ...], fx.Node] = {}
        self._grad_modes: list[tuple[fx.Node, bool]] = []
        self._seed = torch.initial_seed()
        self.begin()

    @contextlib.contextmanager
    def aside(self, level: int = 1) -> Iterator[None]:
        """Code of ours, or closed code: nothing is recorded. With level 0 opened code again."""
        before, self.inside = self.inside, level
        try:
            yield
        finally:
            self.inside = before

    # --- what the mode sees -----------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one call of opened code; whatever closed code calls runs as it is."""
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if func is torch_private.set_grad_enabled:
            return self._set_grad_mode(func, bool(args[0]))
        if func is torch._assert and not isinstance(args[0], Tensor):  # of sizes: an assumption by now
            return func(*plain(args))
        if func is torch.device:
            return (
                args[0] if type(args[0]) is Handle and len(args) == 1 else func(*plain(args), **plain(kwargs))
            )
        call = operations.classify(func, sys._getframe(1))
        if call.kind == "get":
            return self._attribute(args[0], call.target, func)
        if call.kind in ("set", "delete"):
            return self._assign(args[0], call.target, args[1] if len(args) > 1 else None)
        if call.kind == "method":
            found = self._question(call.target, args, kwargs)
            if found is not NotImplemented:
                return found
        if func in operations.WITHOUT_GRAPH:
            raise self.refuse(f"it {operations.WITHOUT_GRAPH[func]} the data in {self._described(args[0])}")
        if call.swapped:
            args = (args[1], args[0], *args[2:])
        return self.record(call, func if not call.swapped else call.target, args, kwargs)

    def record(self, call: operations.Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function on fakes and make its node."""
        self._check_modes()
        lowered = self.ledger.lower(tuple(args)), {k: self.ledger.lower(v) for k, v in kwargs.items()}
        before = self._identities(args)
        run = functools.partial(self.leaves.function, func)
        value, flops = self.evaluate(run, *self.ledger.evaluable((tuple(args), dict(kwargs))))
        kind = "call_method" if call.kind == "method" else "call_function"
        node = self.create(kind, call.target, *lowered, flops=flops)
        self._name(node)
        self._set_value(node, value)
        if isinstance(value, Tensor):
            owner = before.get(id(value))  # an operation in place gives back what it was given
            self.ledger.claim(value if owner is None else owner, node)
            return value if owner is None else owner
        if isinstance(value, (tuple, list)) and not isinstance(value, Size):
            if type(value) in (tuple, list):  # its length may depend on a size, as that of split
                counted = self._read_call(len, node)
                counted.meta["value"] = len(value)
                self.assume(counted, len(value))
            value = self.ledger.adopt(value, node)
            for i, entry in enumerate(value):
                if isinstance(entry, Tensor):
                    self._name(self.ledger.entry(node, (("item", i),)))
            return value
        if value is None or not isinstance(value, (int, float, str, torch.dtype, torch.device, Size)):
            return value
        return self.tracked(value, lambda: node)

    def _identities(self, args: Any) -> dict[int, Tensor]:
        """The tensors of the model among the arguments, by the identity of the fakes that stand for them."""
        leaves = torch.utils._pytree.tree_leaves(args)
        owned = (t for t in leaves if isinstance(t, Tensor) and id(t) in self.ledger.owned)
        return {id(self.ledger.fake(t)): t for t in owned}

    def evaluate(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int]:
        """Run something closed, with its FLOPs if they are counted."""
        counter: Any = flop_counter() if self.count_flops else contextlib.nullcontext()
        with self.aside(), counter:
            value = run(args, kwargs)
        return value, counter.get_total_flops() if self.count_flops else 0

    # --- nodes ------------------------------------------------------------------------------------

    def create(self, kind: str, target: Any, args: Any, kwargs: Any, *, flops: int = 0) -> fx.Node:
        """Make a node."""
        node = self.graph.create_node(kind, target, args, kwargs)
        if kind == "placeholder" or any(n in self._from_input for n in node.all_input_nodes):
            self._from_input.add(node)
        if self.count_flops:
            node.meta["flops"] = flops
        if kind == "get_attr":
            node.meta["value"] = self._owned_value(str(target))
        elif target in (getattr, operator.getitem) and value_of(node.args[0]) is not UNKNOWN:  # type: ignore[arg-type]
            with contextlib.suppress(Exception):
                second: Any = node.args[1]
                key: Any = value_of(second) if isinstance(second, fx.Node) else second
                held: Any = value_of(node.args[0])  # type: ignore[arg-type]
                if not isinstance(held, Tensor):
                    node.meta["value"] = held[key] if target is operator.getitem else getattr(held, key)
        return node

    def _owned_value(self, name: str) -> Any:
        tensor = next((t for t, known in self.ledger.owned.values() if known == name), None)
        return UNKNOWN if tensor is None else self.ledger.fake(tensor)

    def _set_value(self, node: fx.Node, value: Any) -> None:
        """Note the example value; unknown if it, or what it is made of, depends on data."""
        if self.leaves.why_unknown:
            node.meta["unknown_because"] = self.leaves.why_unknown
        if "unknown_because" in node.meta or any(_is_unknown(n) for n in node.all_input_nodes):
            return
        node.meta["value"] = value

    def _name(self, node: fx.Node) -> None:
        """Name an operation as a site of the module that runs."""
        if not self.frames or node.target in _UNNAMED:
            return
        frame = self.frames[-1]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "op")
        name = PLAIN_NAMES.get(node.target, name.strip("_"))
        count = frame.ops[name]
        frame.ops[name] += 1
        node.meta["site"] = Target(frame.path, f"{name}_{count}" if count else name, frame.call, "after")

    # --- questions --------------------------------------------------------------------------------

    def tracked(self, value: Any, make: Callable[[], fx.Node]) -> Any:
        """A number, dtype, device or size as opened code gets it."""
        if type(value) is bool:
            self.assume(make(), value)
            return value
        if isinstance(value, Size):
            sizes: list[Any] = [
                Int(self, n, functools.partial(self._read, operator.getitem, make(), i))
                for i, n in enumerate(value)
            ]
            return Size(sizes)
        if value is DATA or isinstance(value, float):
            return Float(self, value, make)
        if isinstance(value, int):
            return Int(self, value, make)
        return Handle(self, value, make) if not isinstance(value, str) else value

    def _read(self, function: Any, node: fx.Node, key: Any) -> fx.Node:
        """A look-up in a node, made once."""
        if (function, node, key) not in self._reads:
            made = self._reads[function, node, key] = self.create("call_function", function, (node, key), {})
            if function is getattr and isinstance(value_of(node), Tensor):
                made.meta["value"] = self._raw(getattr, (value_of(node), key), {})
        return self._reads[function, node, key]

    def _read_call(self, function: Any, node: fx.Node) -> fx.Node:
        """A call of a plain function on a node, made once."""
        if (function, node) not in self._reads:
            self._reads[function, node] = self.create("call_function", function, (node,), {})
        return self._reads[function, node]

    def vary(self, node: fx.Node) -> None:
        """Say that a node is no fact of the model: what is asked of it is checked."""
        self._from_input.add(node)

    def carries_data(self, value: Any) -> bool:
        """Whether a value depends on the data in the inputs, or only on their sizes and types."""
        data: set[fx.Node] = set()
        for node in self.graph.nodes:
            given = node.op == "placeholder" or (node.op == "get_attr" and isinstance(value_of(node), Tensor))
            if given or (not reads_metadata(node) and any(n in data for n in node.all_input_nodes)):
                data.add(node)
        leaves = torch.utils._pytree.tree_leaves(value)
        return any(isinstance(t, Tensor) and self.ledger.node_of(t) in data for t in leaves)

    def assume_always(self, function: Any, args: tuple[Any, ...], expected: Any, what: str) -> None:
        """Record that the graph relies on what a function of torch says of its modes."""
        if any(known.what == what for known in self.assumptions.values()):
            return
        node = self.create("call_function", function, args, {})
        self.assumptions[node] = Assumption(what, expected)
        self.create("call_function", assume, (node, expected, what), {})

    def _question(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer what a method asks of a tensor, if it is no operation."""
        tensor = args[0]
        if name in ("__repr__", "__format__", "__str__", "__dir__", "__hash__"):
            return self._raw(getattr(Tensor, name), args, kwargs)
        if name == "__len__":
            node = self.ledger.node_of(tensor)
            length = int(self._sizes(tensor)[0]) if self._is_fact(node) else self._raw(len, (tensor,), {})
            self._known(node, "takes the length of")
            made = self._read_call(len, node)
            made.meta["value"] = length
            self.assume(made, length)
            return length
        if name == "__iter__":
            return (
                iter(tensor.unbind(0))
                if self._is_fact(self.ledger.node_of(tensor))
                else self._iterate(tensor)
            )
        if name == "size":
            shape = self._attribute(tensor, "shape", None)
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if name == "item":
            return self._item(tensor)
        if name == "__bool__" and (certain := self._certain(tensor)) is not None:
            return certain
        if name in operations.DATA_METHODS:
            raise self.refuse(f"it {operations.DATA_METHODS[name]} the data in {self._described(tensor)}")
        return NotImplemented

    def _iterate(self, tensor: Tensor) -> Any:
        call = operations.Call("method", "unbind")
        with self:
            count = len(tensor)
        del count
        return iter(self.record(call, Tensor.unbind, (tensor, 0), {}))

    def _item(self, tensor: Tensor) -> Any:
        """The number in a tensor: known only where the tensor is a constant."""
        lowered = self.ledger.node_of(tensor)
        try:
            value: Any = self._raw(Tensor.item, (self.ledger.evaluable(tensor),), {})
        except DATA_DEPENDENT:
            value = DATA
        except Exception:
            value = DATA
        node = self.create("call_method", "item", (lowered,), {})
        if value is DATA:
            node.meta["unknown_because"] = "its value depends on data"
        elif not any(_is_unknown(n) for n in node.all_input_nodes):
            node.meta["value"] = value
        return self.tracked(value, lambda: node)

    def _attribute(self, tensor: Tensor, name: str, getter: Any) -> Any:
        """Read an attribute of a tensor."""
        node = self.ledger.node_of(tensor)
        held = self.ledger.evaluable(tensor)
        if name == "shape":
            if self._is_fact(node):
                return self._raw(getattr, (held, "shape"), {})
            sizes = self._sizes(held, node)
            return Size(map(doubtful, sizes)) if _is_unknown(node) else sizes
        value = self._raw(getattr, (held, name), {})
        make = functools.partial(self._read, getattr, node, name)
        if isinstance(value, Tensor):
            made = self.create("call_function", getattr, (node, name), {})
            self._set_value(made, value)
            self.ledger.claim(value, made)
            return value
        if name in (
            "grad_fn",
            "layout",
            "grad",
            "is_leaf",
            "_version",
            "names",
            "_backward_hooks",
            "__dict__",
        ):
            return value
        if type(value) is int and self._is_fact(node):
            return value
        if type(value) is bool and not self._is_fact(node):
            self._known(node, "asks about")
        return (
            self.tracked(value, make) if isinstance(value, (int, float, torch.dtype, torch.device)) else value
        )

    def _sizes(self, held: Tensor, node: fx.Node | None = None) -> Any:
        shape = self._raw(getattr, (held, "shape"), {})
        if node is None:
            return shape

        def make(i: int) -> fx.Node:
            return self._read(operator.getitem, self._read(getattr, node, "shape"), i)

        sizes: list[Any] = [Int(self, n, functools.partial(make, i)) for i, n in enumerate(shape)]
        return Size(sizes)

    def _is_fact(self, node: fx.Node) -> bool:
        """Whether a node is a tensor of the model or the caller's: its sizes are facts, no assumptions."""
        return node.op == "get_attr"

    def _known(self, node: fx.Node, verb: str) -> None:
        if _is_unknown(node):
            raise self.refuse(f"it {verb} {describe(node)}, which depends on data", reason=why_unknown(node))

    def _raw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call something without recording it."""
        with self.aside():
            return function(*args, **kwargs)

    def _assign(self, tensor: Tensor, name: str, value: Any) -> None:
        """Assign to an attribute of a tensor."""
        node = self.ledger.node_of(tensor)
        if node.op == "get_attr" or name not in ("requires_grad", "data"):
            raise self.refuse(f"it assigns to {describe(node)}.{name}")
        if name == "requires_grad":
            self._raw(self.ledger.evaluable(tensor).requires_grad_, (value,), {})
            self.create("call_method", "requires_grad_", (node, value), {})
        else:
            self._raw(setattr, (tensor, name, self.ledger.evaluable(value)), {})
            self.create("call_function", setattr, (node, name, self.ledger.lower(value)), {})

    def derived(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Arithmetic on numbers."""
        data = any(is_tracked(a) and a._value is DATA for a in args)
        value = DATA if data else function(*map(plain, args))
        found = self.tracked(value, functools.partial(self._compute, function, args, value))
        return doubtful(found) if any(map(unknown, args)) else found

    def _compute(self, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        lowered = tuple(self.ledger.lower(a) for a in args)
        key = (function, *((type(a), a) for a in lowered))
        if key not in self._reads:
            self._reads[key] = self.create("call_function", function, lowered, {})
            if value is not DATA:
                self._reads[key].meta["value"] = value
        return self._reads[key]

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Answer a comparison, which the graph then relies on."""
        if self.inside:
            return bool(function(*map(plain, args)))
        if any(map(unknown, args)):
            first = next(a for a in args if unknown(a))
            raise self.refuse(f"it branches on the data in {describe(first._fx_node())}")
        value = function(*map(plain, args))
        if isinstance(value, bool):
            self.assume(self._compute(function, args, value), value)
        return bool(value)

    def ask(self, tracked: Tracked, verb: str) -> Any:
        """The value behind something tracked, which the graph then relies on."""
        value = tracked._value
        if self.inside:
            return value
        if unknown(tracked):
            raise self.refuse(f"it {verb} the data in {describe(tracked._fx_node())}")
        self.assume(tracked._fx_node(), value)
        return value

    def attribute(self, tracked: Handle, name: str) -> Any:
        """Read an attribute of a dtype, a device or ``finfo``."""
        value = getattr(tracked._value, name)
        make = functools.partial(self._attribute_node, tracked, name, value)
        if isinstance(value, str):
            return Text(self, value, make)
        if isinstance(value, (bool, int, float)):
            return self.tracked(value, make)
        self.ask(tracked, "asks about")
        return value

    def _attribute_node(self, tracked: Handle, name: str, value: Any) -> fx.Node:
        node = self._read(getattr, tracked._fx_node(), name)
        node.meta["value"] = value
        return node

    def assume(self, node: fx.Node, expected: Any) -> None:
        """Record that the graph relies on ``node`` having this value, and check it in every call."""
        if node in self.assumptions or node not in self._from_input:
            return
        what = describe(node)
        self.assumptions[node] = Assumption(what, copy.copy(expected))
        self.create("call_function", assume, (node, expected, what), {})

    def _certain(self, tensor: Tensor) -> bool | None:
        """Whether ``torch.rand(...) < number`` holds for every draw from [0, 1), or for none; else None."""
        node = self.ledger.node_of(tensor)
        if node.target is not operator.lt or not isinstance(node.args[0], fx.Node):
            return None
        draw, bound = node.args
        value = value_of(bound) if isinstance(bound, fx.Node) else bound
        if draw.target is not torch.rand or not isinstance(value, (int, float)) or 0 < value < 1:  # type: ignore[union-attr]
            return None
        if isinstance(bound, fx.Node):
            self.assume(bound, value)
        return bool(value >= 1)

    # --- modes ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Remember the modes that the forward starts in; what differs later, it set itself."""
        self._autocast = _autocast_state()
        self._grad_mode = torch.is_grad_enabled()

    def _set_grad_mode(self, func: Any, mode: bool) -> None:
        """Keep ``with torch.no_grad():`` as it nests: at its end comes back what the caller had."""
        caller = sys._getframe(2)
        while caller is not None and caller.f_code.co_name == "__torch_function__":
            caller = caller.f_back  # type: ignore[assignment]
        ends = any(f.co_name == "__exit__" for f in _codes(caller, 3))
        func(mode)
        self._grad_mode = mode
        if ends and self._grad_modes:
            outer, _ = self._grad_modes.pop()
            last = next(iter(reversed(self.graph.nodes)), None)
            if last is not None and last.target is func and last.prev is outer:  # nothing in between
                self.graph.erase_node(last)
                if not outer.users:
                    self.graph.erase_node(outer)
                return
            self.create("call_function", func, (outer,), {})
            return
        outer = self.create("call_function", _IS_GRAD_ENABLED, (), {})
        self._grad_modes.append((outer, mode))
        self.create("call_function", func, (mode,), {})

    def _check_modes(self) -> None:
        """Refuse what a graph does not keep: autocast and inference regions, a seeded generator."""
        if self._autocast != _autocast_state():
            raise self.refuse("it opens an autocast region of its own, which a graph does not keep")
        if torch.is_grad_enabled() != self._grad_mode:
            raise self.refuse(
                "it calls an autograd function by a name bound earlier (`f = Function.apply`)",
                reason=" Call Function.apply itself, or choose a site outside that module.",
            )
        if torch.is_inference_mode_enabled():
            raise self.refuse("it opens an inference_mode region, which a graph does not keep")
        if torch.initial_seed() != self._seed and threading.active_count() == 1:  # else it may be another's
            raise self.refuse("it seeds torch's generator, and a graph would go on drawing from the caller's")

    # --- errors -----------------------------------------------------------------------------------

    def refuse(self, why: str, *, reason: str = "") -> CaptureError:
        """A `CaptureError` that names the model, the file and the line of the opened code that runs."""
        advice = (
            reason or " A graph cannot hold it; choose a site outside that module, so that it stays closed."
        )
        error = CaptureError(
            f"{type(self.root).__name__}.forward cannot be captured: {why}{user_line()}.{advice}"
        )
        self.refused = self.refused or error  # also where opened code catches it
        return error

    def _described(self, value: Any) -> str:
        return describe(self.ledger.node_of(value)) if isinstance(value, Tensor) else repr(value)


def _codes(frame: Any, count: int) -> Any:
    for _ in range(count):
        if frame is None:
            return
        if is_internal(frame.f_code.co_filename):
            yield frame.f_code
        frame = frame.f_back


def _autocast_state() -> Any:
    kinds = ("cpu", "cuda")
    return [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]


def _is_unknown(node: fx.Node) -> bool:
    return "value" not in node.meta and node.op not in ("output",) and node.target not in _UNNAMED - {getattr}
