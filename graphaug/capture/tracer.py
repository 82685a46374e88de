"""The tracer: one fx tracer that opens only the modules on the way to a target (design section 4)."""

from __future__ import annotations

import builtins
import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import operator
import sys
import threading
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Size, Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphaug import torch_private
from graphaug.capture.dataflow import upstream, why_unknown
from graphaug.capture.names import CONSTANTS, PLAIN_NAMES, Assumption, Frame, differentiable, mark
from graphaug.capture.recording.hooks import has_hooks
from graphaug.capture.recording.leaves import flop_counter
from graphaug.capture.recording.ledger import tensor_names
from graphaug.capture.signature import Signature, evaluating, map_tensors
from graphaug.capture.state import undrawn
from graphaug.capture.target import Target
from graphaug.capture.user_code import user_line
from graphaug.capture.values import UNKNOWN, ValueProxy, assume, describe, value_of
from graphaug.errors import CaptureError
from graphaug.torch_private import FakeTensor, FakeTensorMode

# torch functions that take plain numbers: they do not see a proxy through __torch_function__
_FACTORIES = [
    *("arange", "zeros", "ones", "full", "empty", "eye", "tensor", "as_tensor", "linspace", "scalar_tensor"),
    *("rand", "randn", "randint", "randperm", "finfo", "iinfo", "tril_indices", "triu_indices"),
    *("full_like", "zeros_like", "ones_like", "empty_like"),
]

# these draw: never once at capture, always anew in a call
_UNIFORM = torch.rand  # itself, also while it is patched
_MAKES = set(_FACTORIES) - {"finfo", "iinfo"}
_DRAWS = {_UNIFORM, torch.randn, torch.randint, torch.randperm}


# what checkpoint() calls, from version to version, wherever it was imported from; on a proxy it ends the process
_CHECKPOINTING = {"_checkpoint_impl", "_checkpoint_without_reentrant_generator", "CheckpointFunction"}

_ASKS_WHETHER_TRACED = {"is_tracing", "is_fx_tracing", "is_torch_fx_proxy"}


class _Refused:
    """Stands for a function of torch, or for an autograd function, that opened code may not call."""

    def __init__(self, refuse: Callable[..., Any]) -> None:
        self.apply = refuse

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply(*args, **kwargs)


class _Untouched(TorchFunctionMode):
    """Refuses to write into a tensor of the model while it is traced: that would be done, and not be in the graph."""

    def __init__(self, owned: Mapping[int, Any], refuse: Callable[[str], CaptureError]) -> None:
        super().__init__()
        self.owned, self.refuse = owned, refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one call of torch."""
        name = getattr(func, "__name__", "")
        writes = name in ("__set__", "__setitem__") or (name.endswith("_") and not name.endswith("__"))
        if writes and args and id(args[0]) in self.owned and not isinstance(args[0], FakeTensor):
            raise self.refuse(f"it writes into {self.owned[id(args[0])][1]!r}, which needs example_inputs")
        return func(*args, **(kwargs or {}))


class CaptureTracer(fx.Tracer):
    """Traces a model through the modules in ``opened``; every other module stays one node."""

    proxy_buffer_attributes = True

    def __init__(
        self,
        opened: frozenset[str],
        signature: Signature,
        *,
        marks: frozenset[Target] = frozenset(),
        open_functions: frozenset[str] = frozenset(),
        count_flops: bool = False,
    ) -> None:
        super().__init__()
        self.opened, self.signature, self.marks = opened, signature, marks
        self.open_functions = open_functions
        self.count_flops = count_flops
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.assumptions: dict[fx.Node, Assumption] = {}
        self.constants: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.edges: dict[Target, fx.Node] = {}
        self.failed_in: str | None = None
        self._frames: list[Frame] = []
        self._entering: nn.Module | None = None
        self._values: dict[int, Any] = {}
        self._origins: dict[int, tuple[fx.Node, list[Any]]] = {}

    # --- the walk through modules -------------------------------------------------------------

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        """Trace the model with the signature's inputs."""
        self._paths: dict[nn.Module, str] = {m: name for name, m in root.named_modules()}
        self._tensors = tensor_names(root)
        self._seed = torch.initial_seed()
        self._grad_enabled = torch.is_grad_enabled()
        self._autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        with _Untouched(self._tensors, self.refuse):
            return super().trace(root, None)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make the placeholders, and a function that runs the opened root on them."""
        arguments = {}
        for name, default, example in self.signature.inputs(self._to_fake):
            proxy = self.create_proxy(
                "placeholder", name, () if default is inspect._empty else (default,), {}
            )
            proxy.node.meta["value"] = map_tensors(differentiable, example)
            self._remember(proxy.node)
            if default is inspect._empty:
                arguments[name] = proxy
            else:
                self.assume(proxy.node, default)
                arguments[name] = default
        positional, keywords = self.signature.arrange(arguments)
        assert isinstance(self.root, nn.Module)
        root = self.root

        def run() -> Any:
            self._patch_module_calls(root)
            result = self._run_opened(root, "", 0, root.forward, tuple(positional), keywords)
            self._sync_grad_mode()
            return result

        return run, []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Open the module, or make it one node."""
        if m is self._entering:  # the inner half of a class that wraps nn.Module.__call__
            self._entering = None
            return forward(*args, **kwargs)
        path = self._paths.get(m)
        if path is None:  # a container made on the fly, such as a slice of a Sequential
            return forward(*args, **kwargs)
        call = self.calls[path]
        self.calls[path] += 1
        if path in self.opened:
            return self._run_opened(m, path, call, forward, args, kwargs)
        proxy = self.create_proxy("call_module", path, args, kwargs)
        if isinstance(proxy, fx.Proxy):
            proxy.node.meta["site"] = Target(path, None, call, "after")
        return proxy

    def _run_opened(
        self,
        m: nn.Module,
        path: str,
        call: int,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._patch_functions(m)
        if path and has_hooks(m):
            raise self.refuse(
                f"module {path!r}, which has to be opened, has hooks, and these need example_inputs",
                reason=" Give example_inputs, remove the hooks, or choose a site outside that module.",
            )
        if path and Target(path, None, call, "before") in self.marks:
            args, kwargs = self._mark_input(Target(path, None, call, "before"), args, kwargs)
        self._frames.append(Frame(path, call, Counter()))
        try:
            result = forward(*args, **kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self._frames.pop()
        target = Target(path, None, call, "after")
        return self._mark(target, result) if path and target in self.marks else result

    def _mark(self, target: Target, value: Any) -> Any:
        if not isinstance(value, fx.Proxy):
            if isinstance(value, (tuple, list)) and value and not hasattr(value, "_fields"):
                return type(value)([self._mark(target, value[0]), *value[1:]])
            if isinstance(value, dict) and value:
                first = next(iter(value))
                value[first] = self._mark(target, value[first])
            return value
        proxy = self.create_proxy("call_function", mark, (value,), {})
        if isinstance(proxy, fx.Proxy):
            self.edges[target] = proxy.node
            proxy.node.meta["site"] = target
        return proxy

    def _mark_input(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._mark(target, args[0]), *args[1:]), kwargs
        first = next((k for k, v in kwargs.items() if isinstance(v, fx.Proxy)), None)
        return args, {k: self._mark(target, v) if k == first else v for k, v in kwargs.items()}

    # --- what opened code may call ------------------------------------------------------------

    def _patch_module_calls(self, root: nn.Module) -> None:
        """Classes with a ``__call__`` of their own (gradient checkpointing layers) are modules as well."""
        patcher = torch_private.current_patcher()
        assert patcher is not None
        classes = {cls for m in root.modules() for cls in type(m).__mro__ if "__call__" in vars(cls)}
        for cls in classes - {nn.Module, object}:
            original = vars(cls)["__call__"]

            def wrapped(mod: nn.Module, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                if mod is self._entering:
                    return _original(mod, *args, **kwargs)

                def enter(*args: Any, **kwargs: Any) -> Any:
                    self._entering = mod
                    return _original(mod, *args, **kwargs)

                return self.call_module(mod, enter, args, kwargs)

            patcher.patch_method(cls, "__call__", wrapped, deduplicate=False)
        for name in _FACTORIES:
            patcher.patch(torch.__dict__, name, _leaf_function(self, getattr(torch, name)))
        for name in _CHECKPOINTING & vars(torch.utils.checkpoint).keys():
            patcher.patch(vars(torch.utils.checkpoint), name, _Refused(self._refuse_checkpoint))

    def _refuse_checkpoint(self, *_: Any, **__: Any) -> Any:
        raise self.refuse(
            "it calls torch.utils.checkpoint around code that has to be opened",
            reason=" A graph does not keep that: switch activation checkpointing off for the rewriting, or checkpoint "
            "inside the modules that stay closed.",
        )

    def _patch_functions(self, m: nn.Module) -> None:
        """Make the plain functions that the forward of ``m`` calls by global name into leaves."""
        patcher = torch_private.current_patcher()
        assert patcher is not None
        for cls in type(m).__mro__:
            if cls.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            scope = getattr(sys.modules.get(cls.__module__), "__dict__", None)
            if scope is None or not patcher.visit_once(scope):
                continue
            for name, fn in list(scope.items()):
                plain = isinstance(fn, types.FunctionType) and not name.startswith("__")
                if plain and (fn.__module__ or "torch").partition(".")[0] != "torch":
                    patcher.patch(scope, name, _leaf_function(self, fn))

    def opens_function(self, args: Any, kwargs: Any) -> bool:
        """True if a global function has to be traced through: it gets code, or a target lies inside."""
        if self._frames and self._frames[-1].path in self.open_functions:
            return True
        for value in _flatten((args, kwargs)):
            if isinstance(value, fx.Proxy):
                continue
            if isinstance(value, nn.Module):
                paths = {self._paths.get(child) for child in value.modules()}
                if None in paths or paths & self.opened:
                    return True
            elif callable(value) and not isinstance(value, type):
                return True
        return False

    # --- nodes and their values ---------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return ValueProxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node, under the grad mode that opened code is in."""
        if kind not in ("placeholder", "output"):
            self._sync_grad_mode()
            if torch.initial_seed() != self._seed and threading.active_count() == 1:
                raise self.refuse(
                    "it seeds torch's generator, and a graph would go on drawing from the caller's"
                )
            if self._autocast != (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")):
                raise self.refuse("it opens an autocast region of its own, which a graph does not keep")
        return super().create_node(kind, *args, **kwargs)

    def _sync_grad_mode(self) -> None:
        """Keep ``with torch.no_grad():`` in opened code: fx itself would forget it."""
        if torch.is_grad_enabled() != self._grad_enabled:
            self._grad_enabled = torch.is_grad_enabled()
            super().create_node("call_function", torch_private.set_grad_enabled, (self._grad_enabled,), {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Create a node, name it as a site, and compute its example value."""
        if target is getattr or kind == "call_method":
            known = self._of_parameter(target, args)
            if known is not UNKNOWN:
                return known
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        if self._frames and kind in ("call_function", "call_method") and target is not getattr:
            self._name_operation(node)
        if kind not in ("placeholder", "output"):
            node.meta["value"] = self._evaluate(node)
            if node.meta["value"] is None:
                return None  # so that `is None` in opened code gets its answer
            self._remember(node)
        return proxy

    def _of_parameter(self, target: Any, args: Any) -> Any:
        """Shapes and the like of parameters and buffers are facts of the model, no values to trace."""
        if not (isinstance(args[0], fx.Proxy) and args[0].node.op == "get_attr"):
            return UNKNOWN
        name = args[1] if target is getattr else target
        if name not in ("shape", "ndim", "size", "dim", "numel", "is_floating_point"):
            return UNKNOWN
        tensor = value_of(args[0].node)
        if not isinstance(tensor, Tensor) or any(isinstance(a, fx.Proxy) for a in args[1:]):
            return UNKNOWN
        found = getattr(tensor, name)
        return found if target is getattr else found(*args[1:])

    def _name_operation(self, node: fx.Node) -> None:
        frame = self._frames[-1]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "op")
        if name in ("assume", "mark", "_set_grad_enabled"):
            return
        name = PLAIN_NAMES.get(node.target, name.strip("_"))
        count = frame.ops[name]
        frame.ops[name] += 1
        op = f"{name}_{count}" if count else name
        node.meta["site"] = Target(frame.path, op, frame.call, "after")

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute_value(str(node.target))
        inputs = (node.args, node.kwargs)
        if any(value_of(n) is UNKNOWN for n in node.all_input_nodes):
            return UNKNOWN
        args, kwargs = _plain(fx.map_arg(inputs, value_of))
        counter: Any = flop_counter() if self.count_flops else contextlib.nullcontext()
        with torch_private.without_patches(), torch_private.not_tracing(), undrawn():
            try:
                with self.fake_mode, counter:
                    if node.op == "call_module":
                        value = self._run_module(self._module(str(node.target)), args, kwargs)
                    elif node.op == "call_method":
                        value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                    else:
                        value = node.target(*args, **kwargs)  # type: ignore[operator]
            except _DATA_DEPENDENT as error:
                module = self._by_name[str(node.target)] if node.op == "call_module" else None
                if module is not None and module.training:
                    with evaluating(module):  # observers and samplers look at data in training only
                        return self._evaluate(node)
                node.meta["unknown_because"] = (
                    str(error).splitlines()[0] if str(error) else type(error).__name__
                )
                return UNKNOWN
        if self.count_flops:
            node.meta["flops"] = counter.get_total_flops()
        return value

    def _run_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a closed module; one that sets ``requires_grad`` of its input gets leaves, as in the user's hands."""
        try:
            return self._run_fake(module, args, kwargs)
        except RuntimeError as error:
            if "requires_grad flags of leaf" not in str(error):
                raise
            args, kwargs = map_tensors(Tensor.detach, (args, kwargs))
            return self._run_fake(module, args, kwargs)

    def _run_fake(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module on fake tensors throughout, so that not even a running mean of the user's changes."""
        owned = itertools.chain(
            module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
        )
        return torch.func.functional_call(module, {k: self._fake(t) for k, t in owned}, args, kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._values:
            fake = self._fake_like(tensor)
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                fake.requires_grad_(True)  # what is differentiable is a question about the code
            self._values[id(tensor)] = fake
        found: Tensor = self._values[id(tensor)]
        return found

    def _fake_like(self, tensor: Tensor) -> Tensor:
        """A fake of any tensor; one on the meta device is taken to lie where the others lie."""
        if not tensor.is_meta:
            return self.fake_mode.from_tensor(tensor)
        with self.fake_mode, torch.no_grad():
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._home)
            return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    @functools.cached_property
    def _home(self) -> torch.device:
        """Where tensors lie: the device of the first that is not on the meta device."""
        owned = [tensor for tensor, _ in self._tensors.values()]
        given = torch.utils._pytree.tree_leaves(dict(self.signature.examples))
        devices = (t.device for t in [*owned, *given] if isinstance(t, Tensor) and not t.is_meta)
        return next(devices, torch.device("cpu"))

    def _module(self, path: str) -> nn.Module:
        assert isinstance(self.root, nn.Module)
        return self.root.get_submodule(path)

    def _attribute_value(self, target: str) -> Any:
        if target.startswith(CONSTANTS + "."):
            value = self.constants[target.removeprefix(CONSTANTS + ".")]
        else:
            # looked up in our own tables: an access to the module would itself be traced
            value = self._by_name.get(target, UNKNOWN)
        return self._fake(value) if isinstance(value, Tensor) else value

    @functools.cached_property
    def _by_name(self) -> dict[str, Any]:
        """Modules and tensors by the name that a get_attr node gives them."""
        modules: dict[str, Any] = {path: m for m, path in self._paths.items()}
        return modules | {name: tensor for tensor, name in self._tensors.values()}

    def _to_fake(self, value: Any) -> Any:
        def convert(v: Any) -> Any:
            return self._fake_like(v) if isinstance(v, Tensor) else v

        return torch.utils._pytree.tree_map(convert, value)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Turn a module's tensors into nodes."""
        if not isinstance(attr_val, Tensor) or id(attr_val) not in self._tensors:
            return attr_val
        name = self._tensors[id(attr_val)][1]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """Lower a Python object to what a node can hold."""
        if issubclass(type(a), fx.Proxy):  # type(), because a ValueProxy's class answers for its value
            return a.node
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, FakeTensor):
            return self._origin(a)
        if isinstance(a, Tensor):
            if id(a) in self._tensors:
                return self.create_node("get_attr", self._tensors[id(a)][1], (), {})
            return self._constant("tensor", a)
        if isinstance(a, nn.Module):
            path = self._paths.get(a)
            return self._constant("module", a) if path is None else self.create_node("get_attr", path, (), {})
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            if isinstance(a, dict):  # a ModelOutput; its None fields stay out
                filled = {k: v for k, v in a.items() if v is not None}
                return self.create_proxy("call_function", type(a), (), filled).node
            if not any(isinstance(v, fx.Proxy) for v in _flatten(list(vars(a).values()))):
                return self._constant(
                    "object", a
                )  # a configuration: the live object, not a copy of today's fields
        if isinstance(a, OrderedDict):  # fx would make a plain dict of it
            return self.create_proxy("call_function", type(a), (dict(a),), {}).node
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return self._constant("object", a)

    def write_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module to a proxy's value, at the end of the graph."""
        with self.graph.inserting_before(next(n for n in self.graph.nodes if n.op == "output")):
            owner = self._constant("module", module)
            self.graph.call_function(setattr, (owner, name, value.node))

    def _remember(self, node: fx.Node) -> None:
        """Note whose example values these are: a hook on a closed module may hand them to opened code."""

        def walk(value: Any, keys: list[Any]) -> None:
            if isinstance(value, FakeTensor):
                self._origins.setdefault(id(value), (node, keys))
            elif isinstance(value, Mapping) or (isinstance(value, (tuple, list)) and type(value) is not Size):
                for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
                    walk(entry, [*keys, key])

        walk(node.meta["value"], [])

    def _origin(self, value: FakeTensor) -> fx.Node:
        """The node that an example value belongs to."""
        if id(value) not in self._origins:
            raise self.refuse("it uses a value that a closed module keeps, or that a hook computed")
        node, keys = self._origins[id(value)]
        for key in keys:
            node = self.create_proxy("call_function", operator.getitem, (node, key), {}).node
        return node

    def _constant(self, kind: str, value: Any) -> fx.Node:
        known = next((name for name, v in self.constants.items() if v is value), None)
        if known is None:
            known = f"{kind}_{len(self.constants)}"
            self.constants[known] = value
        node = self.create_node("get_attr", f"{CONSTANTS}.{known}", (), {})
        node.meta["value"] = self._evaluate(node)
        return node

    # --- what leaks into Python ---------------------------------------------------------------

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer ``bool(proxy)``."""
        return bool(self.leak(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Answer ``iter(proxy)``."""
        count = self.leak(obj, len)
        return iter([obj[i] for i in range(count)])  # type: ignore[index]

    def leak(self, proxy: fx.Proxy, kind: Callable[[Any], Any]) -> Any:
        """Give opened code the Python value of a proxy, and remember that it relies on it.

        Raises:
            CaptureError: there is no example value, or the value is data.
        """
        node = proxy.node
        value = value_of(node)
        if kind is bool and (certain := _certain(node)) is not None:
            return certain
        verb = {bool: "branches on", len: "takes the length of"}.get(kind, "needs the number")
        if value is UNKNOWN:
            raise self.refuse(f"it {verb} {describe(node)}", unknown=True, reason=why_unknown(node))
        if isinstance(value, Tensor) and kind is not len:
            raise self.refuse(f"it {verb} the data in {describe(node)}")
        if kind is len:
            length = self.create_proxy("call_function", builtins.len, (proxy,), {})
            self.assume(length.node, len(value))
            return len(value)
        found = kind(value)
        self.assume(node, value)
        return found

    def assume(self, node: fx.Node, expected: Any) -> None:
        """Record that the graph relies on ``node`` having this value, and check it in every call."""
        if node in self.assumptions or not _depends_on_input(node):
            return
        what = describe(node)
        self.assumptions[node] = Assumption(what, copy.copy(expected))
        self.create_node("call_function", assume, (node, expected, what), {})

    def refuse(self, why: str, *, unknown: bool = False, reason: str = "") -> CaptureError:
        """A `CaptureError` that names the model, the file and the line of the opened code that runs."""
        name = type(self.root).__name__
        where = user_line()
        if unknown and not self.signature.has_examples:
            return CaptureError(f"{name}.forward needs example_inputs: {why}{where}.")
        advice = (
            reason or " A graph cannot hold it; choose a site outside that module, so that it stays closed."
        )
        return CaptureError(f"{name}.forward cannot be captured: {why}{where}.{advice}")


_DATA_DEPENDENT = (
    torch_private.DataDependentOutputException,
    torch_private.DynamicOutputShapeException,
)


def _plain(value: Any) -> Any:
    """Lists and dicts as code gets them: a node holds immutable ones, and a module may fill the list it is given."""
    if isinstance(value, fx.immutable_collections.immutable_list):
        return [_plain(v) for v in value]
    if isinstance(value, fx.immutable_collections.immutable_dict):
        return {k: _plain(v) for k, v in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value


def _leaf_function(tracer: CaptureTracer, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if getattr(fn, "__name__", "") in _ASKS_WHETHER_TRACED:
            return True  # it is; and the answer is no fact about the inputs
        constant = not any(isinstance(a, fx.Proxy) for a in _flatten((args, kwargs)))
        makes = fn in _DRAWS or getattr(fn, "__name__", "") in _MAKES  # made anew in every call
        if (constant and not makes) or tracer.opens_function(args, kwargs):
            return fn(*args, **kwargs)
        return tracer.create_proxy("call_function", fn, args, kwargs)

    return wrapped


def _flatten(value: Any) -> Iterator[Any]:
    if issubclass(type(value), fx.Proxy):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _flatten(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _flatten(entry)
    else:
        yield value


def _certain(node: fx.Node) -> bool | None:
    """Whether ``torch.rand(...) < number`` holds for every draw from [0, 1), or for none; else None."""
    if node.target is not operator.lt or not isinstance(node.args[1], (int, float)):
        return None
    draw, bound = node.args
    if not isinstance(draw, fx.Node) or draw.target is not _UNIFORM or 0 < bound < 1:  # type: ignore[operator]
        return None
    return bool(bound >= 1)  # type: ignore[operator]


def _depends_on_input(node: fx.Node) -> bool:
    return any(n.op == "placeholder" for n in upstream(node))
