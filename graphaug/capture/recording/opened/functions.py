"""Functions that a graph calls as one node: plain ones by a name, and custom autograd functions."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from graphaug.capture.recording.patches import Patches, behind
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.modules import global_names, named_by, of_users
from graphaug.capture.recording.values.handles import Text
from graphaug.capture.recording.values.of_a_class import OfAClass
from graphaug.capture.recording.values.structures import PLAIN, holds, plain
from graphaug.capture.recording.values.tracked import is_tracked, is_unknown
from graphaug.capture.user_code import global_names as scope_of
from graphaug.torch_private import FakeTensor

_ASKS_WHETHER_TRACED = {"is_tracing", "is_fx_tracing", "is_torch_fx_proxy"}
_KEEPING = functools._lru_cache_wrapper
"""Functions that look their arguments up among those of earlier calls, which would fix the sizes among them."""


class AutogradCall(OfAClass):
    """``Function.apply`` of a custom autograd function."""

    def __call__(self, *args: Any) -> Any:
        """Apply the function."""
        return self.cls.apply(*args)


class PlainFunctions:
    """Makes the functions that opened code calls by a global name, or off a module, into nodes.

    Args:
        recorder: what records them.
        patches: puts functions of ours in their places.
        opened: the opened modules.
        open_functions: modules whose functions are recorded through, as they have a target inside.
    """

    def __init__(
        self,
        recorder: Recorder,
        patches: Patches,
        opened: frozenset[str],
        open_functions: frozenset[str],
    ) -> None:
        self.recorder, self.patches = recorder, patches
        self.opened, self.open_functions = opened, open_functions
        self._watched: set[tuple[int, str]] = set()

    def watch(self, m: nn.Module) -> None:
        """See every call of a function that the forward of ``m`` can reach by a global name."""
        for cls in type(m).__mro__:
            if cls.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            scope = scope_of(cls)
            if not scope or not self.patches.first_visit(scope):
                continue
            for name, fn in list(scope.items()):
                if not name.startswith("__"):
                    self._watch(scope, name, fn)

    def watch_functions(self, functions: Iterable[types.FunctionType]) -> None:
        """See what these call off a module, ``einops.rearrange(h, "b n d -> b d n")``, and what keeps its results."""
        for function in functions:
            scope = function.__globals__
            for name in global_names(function) & scope.keys():
                if type(scope[name]) is _KEEPING:
                    self._watch(scope, name, scope[name])
            for _, module, names in of_users(named_by(function)):
                for name in names & vars(module).keys():
                    self._watch(vars(module), name, vars(module)[name])

    def _watch(self, scope: dict[str, Any], name: str, fn: Any) -> None:
        if _is_plain_function(fn) and (id(scope), name) not in self._watched:
            self._watched.add((id(scope), name))
            self.patches.entry(scope, name, self._keeping if type(fn) is _KEEPING else self._called)

    def _keeping(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A function that keeps its results: a node that asks the same table in every call.

        One that pickle would not find by its name, ``kept = lru_cache(function)``, is none where it makes numbers of
        sizes: these are made in every call.
        """
        given = args, kwargs
        example = plain(given)
        by_name = behind(vars(sys.modules.get(fn.__module__, types)).get(fn.__qualname__)) is fn
        if by_name or example is given or holds(given, is_unknown) or holds(example, is_tracked):
            return self._called(fn, *args, **kwargs)
        kept = self.recorder.session.call_unrecorded(fn, *example[0], **example[1])
        if all(isinstance(value, PLAIN) for value in tree_leaves(kept)):
            return fn.__wrapped__(*args, **kwargs)
        return self._called(fn, *args, **kwargs)

    def _called(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if getattr(fn, "__name__", "") in _ASKS_WHETHER_TRACED:
            return True  # it is; and the answer is no fact about the inputs
        with self.recorder.session.unrecorded():
            if self._gets_traced(fn, args, kwargs) and not self._is_open(args, kwargs):
                node, value = self.recorder.call("call_function", fn, fn, args, kwargs)
                if isinstance(value, torch.autocast):
                    raise self.recorder.session.refuse(
                        f"it gets an autocast region from a function that it gives a tensor ({fn.__name__})",
                        reason=" Make it where it is entered, `with torch.autocast(...):`, or choose a site outside "
                        "that module, so that it stays closed.",
                    )
                self.recorder.nodes.name(node)
                return self.recorder.adopt(value, node, fn)
        return fn(*args, **kwargs)

    def _gets_traced(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> bool:
        if holds((args, kwargs), _is_traced):
            return True
        return type(fn) is _KEEPING and any(map(_is_traced, _of_shapes((args, kwargs))))

    def _is_open(self, args: Any, kwargs: Any) -> bool:
        """True if a function has to be recorded through: it gets code, or a target lies inside."""
        frames = self.recorder.session.frames
        if frames and frames[-1].path in self.open_functions:
            return True
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, nn.Module):
                paths = {self.recorder.ledger.paths.get(child) for child in value.modules()}
                if None in paths or paths & self.opened:
                    return True
            elif callable(value) and not isinstance(value, (type, Tensor)) and not is_tracked(value):
                return True
        return False


def _is_plain_function(value: Any) -> bool:
    """Whether a value is a function of Python, also one that keeps its results, and none of torch's."""
    if not isinstance(value, (types.FunctionType, _KEEPING)):
        return False
    return (value.__module__ or "torch").partition(".")[0] not in ("torch", "builtins")


def _is_traced(value: Any) -> bool:
    """Whether a function that gets a value computes with it: of the type of a device it makes a region of autocast."""
    tracked = is_tracked(value) and type(value) is not Text
    return tracked or (isinstance(value, Tensor) and isinstance(value, FakeTensor))


def _of_shapes(value: Any) -> list[Any]:
    """The sizes in the shapes of a value, which `holds` takes to hold nothing."""
    flat = tree_leaves(value, is_leaf=lambda inner: type(inner) is torch.Size)
    return [size for leaf in flat if type(leaf) is torch.Size for size in leaf]
