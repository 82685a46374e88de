"""A proof holds for the modules that it was made of: whether they are still the same in a later step."""

from __future__ import annotations

import copy
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from graphaug.capture.recording.kept.layouts import INSTALLED
from graphaug.capture.recording.relied.code_names import attributes_in
from graphaug.capture.recording.relied.facts import WITHOUT_EFFECT, is_plain
from graphaug.capture.recording.relied.reach import found_again, reached_by
from graphaug.capture.recording.relied.reached import Reached
from graphaug.torch_private import FSDP_MARKS, unsharded

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERY_MODULES = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_PLAIN = (bool, int, float, str, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | set(WITHOUT_EFFECT)
_PARTS = ("class", "forward", "attribute", "hook", "child")


class Kept:
    """What the modules of a prefix were when their rows were proved independent.

    Args:
        modules: path, module and the mode that it was proved in, training or not.
        lost: what has changed already, as a clause.

    Attributes:
        plan: the plan of the model while it is run dense because something has changed, to be put back; else None.
        warned: whether that was said.
        modes: whether modes count; `graphaug.verify` puts the prefix in eval mode for a comparison.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module, bool]],
        lost: str = "",
        packed: Iterable[Packed] | None = None,
    ) -> None:
        self.lost, self.warned, self.modes = lost, False, True
        self.plan: Any = None
        unlike = {id(m): (path, m, training) for path, m, training in modules}
        self.seen = [(path, m, _Module(m), training) for path, m, training in unlike.values()]
        self.forwards = {type(m): type(m).forward for _, m, _ in unlike.values()}
        self.everywhere = _hooks_of_every_module()
        kinds = {type(m) for _, m, _ in unlike.values()}
        others, itself = (
            {kind: _asks_of_others(kind) for kind in kinds},
            {k for k in kinds if asks_for_mode(k)},
        )
        reading = [m for _, m, _ in unlike.values() if "requires_grad" in others[type(m)]]
        self.trained = list({p: p.requires_grad for m in reading for p in m.parameters()}.items())
        reading = [m for _, m, _ in unlike.values() if "training" in others[type(m)]]
        self.asked = {id(inner) for m in reading for inner in m.modules() if inner is not m}
        self.asked.update(id(m) for _, m, _ in unlike.values() if type(m) in itself)
        self.reached = _Reach({path: m for path, m, _ in unlike.values()}, packed)

    def changed(self) -> str:
        """What has changed, as a clause; an empty string if nothing has.

        That is a child, hook, method or plain attribute; a hook of every module; and what their code reaches by a name:
        functions, options in containers and objects, class attributes, globals.

        Eval mode is one where a module's own code asks for its mode, torch's own aside, unless it asks for the grad
        mode in it. Sharding's own hooks and marks are none, nor is gradient checkpointing. While a step is compiled
        nothing is looked at.
        """
        return "" if torch.compiler.is_compiling() else self._edited() or self._in_another_mode()

    def _edited(self) -> str:
        if self.lost:
            return self.lost
        others = any(kind.forward is not forward for kind, forward in self.forwards.items())
        for path, module, seen, _ in self.seen:
            if (others or not seen.is_as_it_was()) and (part := seen.changed()):
                return f"{type(module).__name__} '{path}' has another {part}"
        if _hooks_of_every_module() != self.everywhere:
            return "a hook of every module was registered or removed"
        if any(p.requires_grad != was for p, was in self.trained):
            return "the prefix asks whether parameters are trained, and that was changed"
        return self.reached.changed()

    def _in_another_mode(self) -> str:
        for path, module, _, training in self.seen if self.modes else ():
            if module.training != training and (module.training or id(module) in self.asked):
                mode = "training" if module.training else "eval"
                return f"{type(module).__name__} '{path}' is in {mode} mode"
        return ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        modules = [(path, copy.deepcopy(m, memo), mode) for path, m, _, mode in self.seen]
        return Kept(modules, self._edited(), self.reached.packed())

    def __reduce__(self) -> tuple[Any, ...]:
        modules = [(path, m, mode) for path, m, _, mode in self.seen]
        return Kept, (modules, self._edited(), self.reached.packed())


class _Module:
    """What a module was, and whether it is that still: quickly, for hundreds of modules in every step."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.described = module, type(module), _description(module)
        held = vars(module)
        plain = [key for key, _ in self.described[_PARTS.index("attribute")]]
        self.watched = operator.itemgetter("_parameters", *plain)
        self.values, self.count = self.watched(held), len(held)
        self.children = tuple(module._modules.values())
        self.others = [k for k in held if k not in plain and k not in _OF_EVERY_MODULE]

    def is_as_it_was(self) -> bool:
        """Whether nothing has changed; where this cannot be told at once the answer is no."""
        held = vars(self.module)
        if type(self.module) is not self.kind or len(held) != self.count or any(map(held.get, _HOOKS)):
            return False
        try:
            same = self.watched(held) == self.values
        except KeyError:
            return False
        if not same or any(_is_plain(held.get(k)) for k in self.others):
            return False
        return tuple(held["_modules"].values()) == self.children

    def changed(self) -> str:
        """Which part has changed, or an empty string."""
        now = _description(self.module)
        return next((p for p, a, b in zip(_PARTS, now, self.described, strict=True) if a != b), "")


Packed = tuple[str, int, tuple[Any, ...] | None]
"""What `Reached.packed` gives."""


class _Reach:
    """What the code of modules reaches by a name beside their plain attributes, as it was; see `reached_by`.

    Hundreds of things are asked in every step: each by one look-up in the dict that has it, and only where that gives
    something else by `Reached.holds`. What a class has is asked of the class, once for all of its modules.
    """

    def __init__(self, modules: dict[str, nn.Module], packed: Iterable[Packed] | None) -> None:
        owner = nn.Module()  # no forward of its own: nothing but the modules is asked about
        owner._modules.update(modules)
        if packed is None:
            found = reached_by(owner, modules)
            self.things = [thing for thing in found.things if _counts(thing, found.names)]
        else:
            self.things = list(found_again(packed, owner, modules))
        self.quick: list[tuple[Callable[[Any], Any], Any, Any, Reached]] = []
        self.slow: list[Reached] = []
        self.of_classes: dict[tuple[type, str], tuple[Any, Reached]] = {}
        self.held: dict[int, tuple[Any, int, list[Reached]]] = {}
        for thing in self.things:
            self._add(thing)

    def _add(self, thing: Reached) -> None:
        holder, key = thing.holder, thing.key
        held = holder if thing.kind == "item" else getattr(holder, "__dict__", {})
        if thing.kind in ("attribute", "item") and type(held) is dict and held.get(key) is thing.expected:
            self.quick.append((held.get, key, thing.expected, thing))
        elif thing.kind in ("attribute", "method") and isinstance(holder, nn.Module) and key not in held:
            self.of_classes.setdefault((type(holder), key), (getattr(type(holder), key, None), thing))
            self.held.setdefault(id(holder), (held, len(held), []))[2].append(thing)
        else:
            self.slow.append(thing)

    def changed(self) -> str:
        """The first thing that is not what it was, as a clause."""
        for get, key, expected, thing in self.quick:
            if get(key) is not expected and not _holds(thing):
                return f"{thing.name} has changed"
        for (kind, key), (expected, thing) in self.of_classes.items():
            if getattr(kind, key, None) is not expected and not _holds(thing):
                return f"{thing.name} has changed"
        for held, count, things in self.held.values():
            if len(held) != count:  # it may have one of its own now
                for thing in things:
                    if not _holds(thing):
                        return f"{thing.name} has changed"
        return next((f"{thing.name} has changed" for thing in self.slow if not _holds(thing)), "")

    def packed(self) -> list[Packed]:
        """What to find again in a copy."""
        return [thing.packed() for thing in self.things]


def _counts(thing: Reached, names: frozenset[str]) -> bool:
    """Whether a change of a thing may be one of the prefix: the code of its modules has the name.

    What closed code reads is not seen, and a library's configuration is written to by much that is none of the
    forward, as when a model is saved. Defaults are changed by code alone.
    """
    of_an_object = thing.kind in ("attribute", "method") and not isinstance(thing.holder, nn.Module)
    if of_an_object and (thing.key not in names or _is_of_a_library(type(thing.holder))):
        return False
    return "a default of " not in thing.name and (thing.within is None or _counts(thing.within, names))


def _is_of_a_library(kind: type) -> bool:
    return INSTALLED in (getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


def _holds(thing: Reached) -> bool:
    """Whether a thing is what it was; a dict of tensors is a table, which is filled on the way."""
    tables = (
        thing.kind == "keys"
        and isinstance(thing.holder, dict)
        and any(isinstance(v, Tensor) for v in thing.holder.values())
    )
    return tables or thing.holds()


def _description(module: nn.Module) -> tuple[Any, ...]:
    """What decides about a module's forward, beside its tensors and what its attributes refer to; see `_PARTS`."""
    held = vars(module)
    ours = [(k, v) for k, v in held.items() if k not in ("training", *WITHOUT_EFFECT) and k not in FSDP_MARKS]
    plain = [(k, v) for k, v in ours if _is_plain(v)]
    hooks = [h for name in _HOOKS for h in (held.get(name) or {}).values() if not _leaves_rows(h)]
    kind = unsharded(type(module))
    return kind, (kind.forward, held.get("forward")), plain, hooks, list(module._modules.items())


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (type(value) is tuple and is_plain(value))


def _hooks_of_every_module() -> list[Any]:
    """The hooks that torch calls for all modules, its own tools' aside (a profiler's, a counter's of FLOPs)."""
    hooks = [h for name in _EVERY_MODULES for h in getattr(torch_module, name).values()]
    return (
        [h for h in hooks if not str(getattr(h, "__module__", "")).startswith("torch.")] if hooks else hooks
    )


def asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether a class may compute something else in eval mode, for one part of the rows or for all.

    That is where code outside of torch names ``training``. Torch's own is known to leave rows apart in eval mode; but
    where it asks for the grad mode too, it takes other kernels without gradients, which zero what is padded.
    """
    return any(
        "training" in names and (not is_torchs or "is_grad_enabled" in names)
        for is_torchs, names in _names(kind)
    )


def _names(kind: type[nn.Module]) -> Iterator[tuple[bool, set[str]]]:
    """For each function of a class whether it is torch's, and the names in its code."""
    for cls in kind.__mro__:
        if cls in (nn.Module, object):
            continue
        for function in (f for f in vars(cls).values() if isinstance(f, types.FunctionType)):
            waiting, found = [function.__code__], set[str]()
            for code in waiting:  # grows on the way: functions inside of functions
                found.update(code.co_names)
                waiting.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
            yield cls.__module__.partition(".")[0] == "torch", found


def _asks_of_others(kind: type[nn.Module]) -> frozenset[str]:
    """Which of ``training`` and ``requires_grad`` code of a class, torch's aside, reads off others than itself."""
    found = set()
    for cls in kind.__mro__:
        for function in (
            vars(cls).values() if cls.__module__.partition(".")[0] not in ("torch", "builtins") else ()
        ):
            if isinstance(function, types.FunctionType):
                itself = function.__code__.co_varnames[:1]
                found |= {name for owner, name in attributes_in(function.__code__) if owner not in itself}
    return frozenset(found & {"training", "requires_grad"})


def _leaves_rows(hook: Any) -> bool:
    """Whether a hook is of sharding or gradient reduction, or asks embeddings for gradients, to recompute.

    The latter are of transformers and PEFT; transformers 5 adds one in every `Trainer.train` with checkpointing.
    """
    home, name = str(getattr(hook, "__module__", "")), str(getattr(hook, "__name__", ""))
    asks = home.partition(".")[0] in ("transformers", "peft") and name.startswith("make_inputs_require_grad")
    return asks or home.startswith("torch.distributed")
