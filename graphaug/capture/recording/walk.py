"""The walk through a model's modules: which are opened, which are leaves, and what is put in the way of opened code."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from torch import Tensor, fx, nn

from graphaug.capture.names import Assumption, Frame, differentiable, mark
from graphaug.capture.recording.facts import Fact, is_plain, read_names
from graphaug.capture.recording.functions import AutogradCall
from graphaug.capture.recording.hooks import (
    has_backward_hooks,
    has_global_hooks,
    run_forward_hooks,
    run_pre_hooks,
)
from graphaug.capture.recording.ledger import holds, layout
from graphaug.capture.recording.operations import Call
from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.sizes import Float, Handle, is_tracked, plain
from graphaug.capture.signature import Signature, map_tensors
from graphaug.capture.state import FILLED, ModelState
from graphaug.capture.target import Target
from graphaug.capture.user_code import is_internal
from graphaug.torch_private import FakeTensor

# what checkpoint() calls, from version to version, wherever it was imported from
_CHECKPOINTING = {"_checkpoint_impl", "_checkpoint_without_reentrant_generator"}
_ASKS_WHETHER_TRACED = {"is_tracing", "is_fx_tracing", "is_torch_fx_proxy"}
_MODES = ("is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled", "is_autocast_cpu_enabled")


class Walk:
    """Records a model through the modules in ``opened``; every other module stays one node.

    Attributes:
        calls: how often each module was called.
        edges: marked inputs and outputs of opened modules.
        hooked: opened modules whose hooks are nodes of the graph.
        failed_in: the opened module in which an error came up.
    """

    def __init__(
        self,
        model: nn.Module,
        opened: frozenset[str],
        signature: Signature,
        *,
        marks: frozenset[Target] = frozenset(),
        open_functions: frozenset[str] = frozenset(),
        count_flops: bool = False,
    ) -> None:
        self.model, self.opened, self.signature = model, opened, signature
        self.marks, self.open_functions = marks, open_functions
        self.recorder = Recorder(model, signature, count_flops=count_flops)
        self.ledger = self.recorder.ledger
        self.patches = Patches(lambda: not self.recorder.inside and self._running)
        self.calls: Counter[str] = Counter()
        self.edges: dict[Target, fx.Node] = {}
        self.hooked: set[str] = set()
        self.failed_in: str | None = None
        self.facts: dict[tuple[str, str], Fact] = {}
        self._numbers: dict[tuple[str, str], fx.Node] = {}
        self._entering: nn.Module | None = None
        self._running = False

    @property
    def assumptions(self) -> dict[fx.Node, Assumption]:
        """What the graph relies on, by the node that checks it."""
        return self.recorder.assumptions

    @property
    def constants(self) -> dict[str, Any]:
        """Objects that the graph refers to and no module owns."""
        return self.ledger.constants

    # --- the whole ----------------------------------------------------------------------------

    def record(self, state: ModelState) -> fx.Graph:
        """Run the forward on fakes of the examples.

        Args:
            state: the model as it was, to tell what the forward changes.

        Raises:
            CaptureError: it does what a graph cannot hold.
            Exception: whatever the forward itself raises.
        """
        recorder = self.recorder
        recorder.begin()
        if has_global_hooks():
            raise recorder.refuse(
                "hooks are registered for all modules of the process", reason=" Remove them first."
            )
        with self.patches, recorder.fake_mode:
            positional, keywords = self.signature.arrange(self._placeholders())
            self._patch()
            self._running = True
            try:
                with recorder, recorder.aside():
                    result = self._run_opened(
                        self.model, "", 0, self.model.forward, tuple(positional), keywords
                    )
                    self._write_back(state)
                    recorder.graph.create_node("output", "output", (self.ledger.lower(result),), {})
            finally:
                self._running = False
        if recorder.refused is not None:
            raise recorder.refused
        return recorder.graph

    def _placeholders(self) -> dict[str, Any]:
        """A placeholder for every input, those without a default first, and the fakes that opened code gets."""
        arguments: dict[str, Any] = {}
        inputs = list(self.signature.inputs(self._to_fake))
        for name, default, example in sorted(inputs, key=lambda i: i[1] is not inspect.Parameter.empty):
            constant = default is not inspect.Parameter.empty
            node = self.recorder.create("placeholder", name, (default,) if constant else (), {})
            if constant:
                node.meta["value"] = example
                self.recorder.assume(node, default)
                arguments[name] = default
                continue
            example = map_tensors(differentiable, example)
            arguments[name] = self.ledger.adopt(example, node)
            node.meta["value"] = example
            if not isinstance(example, Tensor):
                self._assume_layout(node, example)
        return arguments

    def _to_fake(self, value: Any) -> Any:
        given = [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
        owned = [t for t, _ in self.ledger.owned.values()]
        self.ledger.home = next((t.device for t in [*owned, *given] if not t.is_meta), torch.device("cpu"))
        fakes = map_tensors(self.ledger.fake_like, value)
        if holds(fakes, lambda v: isinstance(v, Tensor) and not isinstance(v, FakeTensor)):
            raise self.recorder.refuse(
                f"example_inputs hold tensors inside of a {type(value).__name__}",
                reason=" Give tensors, and tuples, lists and dicts of tensors.",
            )
        return fakes

    def _assume_layout(self, node: fx.Node, value: Any) -> None:
        found = layout(value)
        made = self.recorder.create("call_function", layout, (node,), {})
        made.meta["value"] = found
        self.recorder.assume(made, found)

    # --- attributes ---------------------------------------------------------------------------

    def _read_attribute(self, original: Callable[..., Any], m: nn.Module, name: str) -> Any:
        """A float of an opened module is read in every call; other numbers and switches are relied on."""
        value = original(m, name)
        if type(value) is float or is_plain(value):
            with self.recorder.aside():
                return self._noted(m, name, value)
        return value

    def _noted(self, m: nn.Module, name: str, value: Any) -> Any:
        path = self.ledger.paths.get(m)
        by_mode = name == "training" and not path  # each mode has its graph
        if by_mode or name in _OF_THE_BACKWARD or path not in self.opened or name not in vars(m):
            return value
        assert path is not None
        if type(value) is float:
            return Float(self.recorder, value, functools.partial(self._number, path, name, value))
        if (name in vars(m) and not name.startswith("_")) or name == "training":
            self.facts.setdefault((path, name), Fact(path, name, value))
        return value

    def _number(self, path: str, name: str, value: float) -> fx.Node:
        if (path, name) not in self._numbers:
            node = self.recorder.create("get_attr", f"{path}.{name}".removeprefix("."), (), {})
            node.meta["value"] = value
            self._numbers[path, name] = node
            self.recorder.vary(node)
        return self._numbers[path, name]

    def _write_back(self, state: ModelState) -> None:
        """A node for every attribute that the forward sets.

        Raises:
            CaptureError: what it sets depends on what was there before, which a graph cannot follow.
        """
        for name, before in state.replaced():
            path, _, attribute = name.rpartition(".")
            if path not in self.opened:
                continue
            module = self.model.get_submodule(path)
            value = getattr(module, attribute)
            if is_plain(value) and is_plain(before) and value == before:
                continue
            kept = isinstance(before, Tensor) and isinstance(value, Tensor)
            if not kept and (attribute in read_names(type(module)) or before is FILLED):
                if not self.recorder.carries_data(value) and before is None and isinstance(value, Tensor):
                    continue  # a table that is made of sizes alone; the graph makes it in every call
                raise self.recorder.refuse(
                    f"it keeps {name!r} from one call to the next",
                    reason=" A graph has no memory: choose a site outside that module, so that it stays closed.",
                )
            if (
                type(value) is bool
            ):  # "done once": what it stands for (hooks of transformers) was undone with it
                continue
            self.facts.pop((path, attribute), None)
            owner = self.ledger.lower(module)
            self.recorder.create("call_function", setattr, (owner, attribute, self.ledger.lower(value)), {})

    # --- modules ------------------------------------------------------------------------------

    def _called(self, call: Callable[..., Any], m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What opened code gets when it calls a module."""
        if m is self._entering:  # the inner half of a class with a ``__call__`` of its own
            self._entering = None
            return call(m, *args, **kwargs)
        path = self.ledger.paths.get(m)
        if path is None:  # a container made on the fly, such as a slice of a Sequential
            return call(m, *args, **kwargs)
        number = self.calls[path]
        self.calls[path] += 1
        if path not in self.opened:
            with self.recorder.aside():
                return self._closed(m, path, number, args, kwargs)

        def enter(*args: Any, **kwargs: Any) -> Any:
            if call is not _MODULE_CALL:
                self._entering = m
                return call(m, *args, **kwargs)
            return m.forward(*args, **kwargs)

        with self.recorder.aside():
            return self._run_opened(m, path, number, enter, args, kwargs)

    def _closed(self, m: nn.Module, path: str, number: int, args: Any, kwargs: Any) -> Any:
        recorder, ledger = self.recorder, self.ledger
        recorder._check_modes()
        lowered = ledger.lower(tuple(args)), {k: ledger.lower(v) for k, v in kwargs.items()}
        run = functools.partial(recorder.leaves.module, m)
        value, flops = recorder.evaluate(run, *ledger.evaluable((tuple(args), dict(kwargs))))
        node = recorder.create("call_module", path, *lowered, flops=flops)
        node.meta["site"] = Target(path, None, number, "after")
        recorder._set_value(node, value)
        return self._adopted(value, node)

    def _adopted(self, value: Any, node: fx.Node) -> Any:
        """A closed module's or function's result, as opened code gets it; its layout is relied on."""
        recorder = self.recorder
        adopted = recorder._raw(self.ledger.adopt, (value, node), {})
        if not isinstance(value, (Tensor, int, float, type(None))):
            self._assume_layout(node, value)
        elif isinstance(value, bool):
            recorder.assume(node, value)
        return adopted

    def _run_opened(
        self, m: nn.Module, path: str, number: int, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        self._patch_functions(m)
        if path:
            if has_backward_hooks(m):
                raise self.recorder.refuse(
                    f"module {path!r}, which has to be opened, has a hook on its gradients",
                    reason=" Remove the hook, or choose a site outside that module.",
                )
            if m._forward_pre_hooks:
                args, kwargs = self._hooks(run_pre_hooks, m, path, (tuple(args), dict(kwargs)))
            before = Target(path, None, number, "before")
            if before in self.marks:
                args, kwargs = self._mark_input(before, args, kwargs)
        if path:
            self.facts.setdefault(
                (path, ""), Fact(path, "", True if path in self.hooked or m._forward_hooks else None)
            )
        self.recorder.frames.append(Frame(path, number, Counter()))
        try:
            with self.recorder.aside(0):
                result = forward(*args, **kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self.recorder.frames.pop()
        if path and m._forward_hooks:
            result = self._hooks(run_forward_hooks, m, path, (tuple(args), dict(kwargs), result))
        target = Target(path, None, number, "after")
        return self._mark(target, result) if path and target in self.marks else result

    def _hooks(self, function: Callable[..., Any], m: nn.Module, path: str, args: tuple[Any, ...]) -> Any:
        """One node that calls a module's hooks."""
        recorder, ledger = self.recorder, self.ledger
        self.hooked.add(path)
        lowered = ledger.lower((m, *args))
        run = functools.partial(recorder.leaves.function, function)
        value, flops = recorder.evaluate(run, ledger.evaluable((m, *args)), {})
        node = recorder.create("call_function", function, lowered, {}, flops=flops)
        recorder._set_value(node, value)
        return recorder._raw(ledger.adopt, (value, node), {})

    def _mark(self, target: Target, value: Any) -> Any:
        """Mark a value as a site: the first tensor of it."""
        if isinstance(value, Tensor):
            node = self.recorder.create("call_function", mark, (self.ledger.node_of(value),), {})
            node.meta["site"] = target
            self.recorder.leaves.why_unknown = ""
            self.recorder._set_value(node, self.ledger.evaluable(value))
            self.edges[target] = node
            return self.recorder._raw(self.ledger.adopt, (self.ledger.evaluable(value), node), {})
        if isinstance(value, (tuple, list)) and value and not hasattr(value, "_fields"):
            return type(value)([self._mark(target, value[0]), *value[1:]])
        if isinstance(value, dict) and value:
            first = next(iter(value))
            value[first] = self._mark(target, value[first])
        return value

    def _mark_input(self, target: Target, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (self._mark(target, args[0]), *args[1:]), kwargs
        first = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        return args, {k: self._mark(target, v) if k == first else v for k, v in kwargs.items()}

    # --- what opened code may call ------------------------------------------------------------

    def _patch(self) -> None:
        classes = {c for m in self.model.modules() for c in type(m).__mro__ if "__call__" in vars(c)}
        for cls in (classes | {nn.Module}) - {object}:
            self.patches.method(cls, "__call__", self._called)
        opened = {type(m) for m, path in self.ledger.paths.items() if path in self.opened}
        for cls in (c for c in opened if c.__module__.partition(".")[0] != "torch"):
            self.patches.method(cls, "__getattribute__", self._read_attribute)
        for name in _CHECKPOINTING & vars(torch.utils.checkpoint).keys():
            self.patches.method(torch.utils.checkpoint, name, self._refuse_checkpoint)
        self.patches.class_method(torch.autograd.Function, "apply", self._apply)
        self.patches.method(torch.autocast, "__enter__", self._refuse_autocast)
        for owner in (torch, torch.utils.dlpack):  # on a fake tensor it ends the process
            if hasattr(owner, "to_dlpack"):
                self.patches.method(owner, "to_dlpack", self._refuse_dlpack)
        for name in ("manual_seed", "seed", "set_rng_state", "fork_rng"):
            for owner in (o for o in (torch, torch.random) if hasattr(o, name)):
                self.patches.method(owner, name, self._refuse_seed)
        for name in ("finfo", "iinfo"):
            self.patches.method(torch, name, functools.partial(self._type_info, name))
        for name in _MODES:
            if hasattr(torch, name):
                self.patches.method(torch, name, functools.partial(self._asked_mode, name))

    def _apply(self, apply: Callable[..., Any], cls: Any, *args: Any, **kwargs: Any) -> Any:
        """A custom autograd function is one node."""
        if "CheckpointFunction" in cls.__name__:
            self._refuse_checkpoint(apply)
        with self.recorder.aside():
            return self.recorder.record(Call("function", AutogradCall(cls)), apply, args, kwargs)

    def _refuse_checkpoint(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.refuse(
            "it calls torch.utils.checkpoint around code that has to be opened",
            reason=" A graph does not keep that: switch activation checkpointing off for the rewriting, or checkpoint "
            "inside the modules that stay closed.",
        )

    def _guarded(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
        def guard(*args: Any, **kwargs: Any) -> Any:
            return (
                replacement(original, *args, **kwargs) if self.patches.here() else original(*args, **kwargs)
            )

        return guard

    def _refuse_dlpack(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        raise self.recorder.refuse("it hands a tensor to other code by dlpack")

    def _refuse_seed(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.refuse(
            "it seeds torch's generator, and a graph would go on drawing from the caller's"
        )

    def _refuse_autocast(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.refuse("it opens an autocast region of its own, which a graph does not keep")

    def _type_info(self, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """``torch.finfo(h.dtype)``, read in every call."""
        if len(args) != 1 or kwargs or type(args[0]) is not Handle:
            return original(*plain(args), **plain(kwargs))
        handle, value = args[0], original(args[0]._value)

        def make() -> fx.Node:
            node = self.recorder._read_call(original, handle._fx_node())
            node.meta["value"] = value
            return node

        return Handle(self.recorder, value, make)

    def _asked_mode(self, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A question about a mode of torch by opened code itself: the graph holds for the answer."""
        value = original(*args, **kwargs)
        if not is_internal(sys._getframe(2).f_code.co_filename):
            self.recorder.assume_always(original, args, value, f"torch.{name}({', '.join(map(repr, args))})")
        return value

    def _patch_functions(self, m: nn.Module) -> None:
        """Make the plain functions that the forward of ``m`` calls by global name into leaves."""
        for cls in type(m).__mro__:
            if cls.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            scope = getattr(sys.modules.get(cls.__module__), "__dict__", None)
            if scope is None or not self.patches.first_visit(scope):
                continue
            for name, fn in list(scope.items()):
                if fn is _TO_DLPACK:
                    self.patches.entry(scope, name, self._guarded(fn, self._refuse_dlpack))
                function = isinstance(fn, types.FunctionType) and not name.startswith("__")
                if function and (fn.__module__ or "torch").partition(".")[0] != "torch":
                    self.patches.entry(scope, name, self._leaf_function(fn))

    def _leaf_function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self.patches.here():
                return fn(*args, **kwargs)
            if getattr(fn, "__name__", "") in _ASKS_WHETHER_TRACED:
                return True  # it is; and the answer is no fact about the inputs
            with self.recorder.aside():
                closed = holds((args, kwargs), self._is_traced) and not self._opens_function(args, kwargs)
                if closed:
                    return self._called_function(fn, args, kwargs)
            return fn(*args, **kwargs)

        return wrapped

    def _called_function(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One node for a plain function."""
        recorder, ledger = self.recorder, self.ledger
        recorder._check_modes()
        lowered = ledger.lower(tuple(args)), {k: ledger.lower(v) for k, v in kwargs.items()}
        run = functools.partial(recorder.leaves.function, fn)
        value, flops = recorder.evaluate(run, *ledger.evaluable((tuple(args), dict(kwargs))))
        node = recorder.create("call_function", fn, *lowered, flops=flops)
        recorder._name(node)
        recorder._set_value(node, value)
        return self._adopted(value, node)

    @staticmethod
    def _is_traced(value: Any) -> bool:
        return is_tracked(value) or (isinstance(value, Tensor) and isinstance(value, FakeTensor))

    def _opens_function(self, args: Any, kwargs: Any) -> bool:
        """True if a global function has to be recorded through: it gets code, or a target lies inside."""
        frames = self.recorder.frames
        if frames and frames[-1].path in self.open_functions:
            return True
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, nn.Module):
                paths = {self.ledger.paths.get(child) for child in value.modules()}
                if None in paths or paths & self.opened:
                    return True
            elif callable(value) and not isinstance(value, (type, Tensor)) and not is_tracked(value):
                return True
        return False


_MODULE_CALL = nn.Module.__call__
_OF_THE_BACKWARD = (
    "gradient_checkpointing",
    "grad_checkpointing",
)  # switches that change no value and no gradient
_TO_DLPACK: Any = vars(torch.utils.dlpack)["to_dlpack"]
