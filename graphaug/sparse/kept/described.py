"""What decides about a module's forward beside its tensors, and whether it is what it was: in microseconds a module."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

from graphaug.capture.recording.relied.facts import WITHOUT_EFFECT, is_plain
from graphaug.torch_private import FSDP_MARKS, unsharded

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | set(WITHOUT_EFFECT)
_PARTS = ("class", "forward", "attribute", "hook", "child", "parameter or buffer")


class ModuleSeen:
    """What a module was, and whether it is that still: quickly, for hundreds of modules in every step."""

    def __init__(self, module: nn.Module, asked: frozenset[str]) -> None:
        self.absent = asked - vars(module).keys()  # of what code asks for by a string
        self.module, self.kind, self.described = module, type(module), _description(module)
        held = vars(module)
        plain = [key for key, _ in self.described[_PARTS.index("attribute")]]
        self.watched = operator.itemgetter("_parameters", *plain)
        self.values, self.count = self.watched(held), len(held)
        self.children, self.tensors = tuple(module._modules.values()), _tensors(held)
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
        return tuple(held["_modules"].values()) == self.children and self._has_its_tensors(held)

    def _has_its_tensors(self, held: dict[str, Any]) -> bool:
        """Whether its tensors are those that were there, or others of their kind: loaded, converted, moved."""
        now = _tensors(held)
        if len(now) == len(self.tensors) and all(map(operator.is_, now, self.tensors)):
            return True
        if _described_tensors(held) != self.described[_PARTS.index("parameter or buffer")]:
            return False
        self.tensors = now
        return True

    def changed(self, *, hooks: bool) -> str:
        """Which part has changed, or an empty string; hooks are one only if they count."""
        held = vars(self.module)
        if any(
            not isinstance(held[name], Tensor) for name in self.absent & held.keys()
        ):  # a tensor is a cache
            return "attribute"
        now = _description(self.module)
        parts = zip(_PARTS, now, self.described, strict=True)
        return next((p for p, a, b in parts if a != b and (hooks or p != "hook")), "")


def _description(module: nn.Module) -> tuple[Any, ...]:
    """What decides about a module's forward, beside numbers in tensors and what attributes refer to; see `_PARTS`."""
    held = vars(module)
    # the hooks themselves tell more than what the last of them leaves behind
    told_by_others = ("training", "_is_full_backward_hook", *WITHOUT_EFFECT)
    ours = [(k, v) for k, v in held.items() if k not in told_by_others and k not in FSDP_MARKS]
    plain = [(k, v) for k, v in ours if _is_plain(v)]
    hooks = [h for name in _HOOKS for h in (held.get(name) or {}).values() if not _leaves_rows(h)]
    kind = unsharded(type(module))
    # a scripted class has none that could be read, or exchanged
    of_class = None if issubclass(kind, ScriptModule) else kind.forward
    forward, children = (of_class, held.get("forward")), list(module._modules.items())
    return kind, forward, plain, hooks, children, _described_tensors(held)


def _tensors(held: dict[str, Any]) -> tuple[Any, ...]:
    return *held["_parameters"].values(), *held["_buffers"].values()


def _described_tensors(held: dict[str, Any]) -> list[tuple[str, Any]]:
    registered = [*held["_parameters"].items(), *held["_buffers"].items()]
    return [(name, kind_of_tensor(tensor)) for name, tensor in registered]


def kind_of_tensor(tensor: Any) -> Any:
    """What a forward can branch on without reading numbers: whether it is there, its shape, what numbers it holds.

    Not how exact they are: a model that is converted after it was rewritten is the same model.
    """
    if not isinstance(tensor, Tensor) or is_lazy(tensor):
        return type(tensor)
    return tuple(tensor.shape), "float" if tensor.is_floating_point() else tensor.dtype


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (type(value) is tuple and is_plain(value))


def _leaves_rows(hook: Any) -> bool:
    """Whether a hook is of sharding or gradient reduction, or asks embeddings for gradients, to recompute.

    The latter are of transformers and PEFT; transformers 5 adds one in every `Trainer.train` with checkpointing.
    """
    home, name = str(getattr(hook, "__module__", "")), str(getattr(hook, "__name__", ""))
    asks = home.partition(".")[0] in ("transformers", "peft") and name.startswith("make_inputs_require_grad")
    return asks or home.startswith("torch.distributed")
