"""A proof holds for the modules that it was made of: whether they are still the same in a later step."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from graphaug.capture.recording.relied.facts import WITHOUT_EFFECT
from graphaug.torch_private import FSDP_MARKS

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))
_PARTS = ("forward", "attribute", "hook", "child")


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

    def __init__(self, modules: Iterable[tuple[str, nn.Module, bool]], lost: str = "") -> None:
        self.lost, self.warned, self.modes = lost, False, True
        self.plan: Any = None
        unlike = {id(m): (path, m, training) for path, m, training in modules}
        self.seen = [(path, m, _description(m), training) for path, m, training in unlike.values()]

    def changed(self) -> str:
        """What has changed, as a clause: a child, hook, method or plain attribute; an empty string if nothing has.

        Eval mode is one where a module's own code asks for its mode, torch's own aside. Sharding's own hooks and marks
        are none, nor is gradient checkpointing. While a step is compiled nothing is looked at.
        """
        return "" if torch.compiler.is_compiling() else self._edited() or self._in_another_mode()

    def _edited(self) -> str:
        for path, module, seen, _ in self.seen if not self.lost else ():
            now = _description(module)
            if now != seen:
                part = next(p for p, a, b in zip(_PARTS, now, seen, strict=True) if a != b)
                return f"{type(module).__name__} '{path}' has another {part}"
        return self.lost

    def _in_another_mode(self) -> str:
        for path, module, _, training in self.seen if self.modes else ():
            if module.training != training and (module.training or asks_for_mode(type(module))):
                mode = "training" if module.training else "eval"
                return f"{type(module).__name__} '{path}' is in {mode} mode"
        return ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept([(path, copy.deepcopy(m, memo), mode) for path, m, _, mode in self.seen], self._edited())

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ([(path, m, mode) for path, m, _, mode in self.seen], self._edited())


def _description(module: nn.Module) -> tuple[Any, ...]:
    """What decides about a module's forward, beside its tensors and what its attributes refer to; see `_PARTS`."""
    held = vars(module)
    ours = [(k, v) for k, v in held.items() if k not in ("training", *WITHOUT_EFFECT) and k not in FSDP_MARKS]
    plain = [(k, v) for k, v in ours if isinstance(v, _PLAIN)]
    hooks = [h for name in _HOOKS for h in (held.get(name) or {}).values() if not _leaves_rows(h)]
    return (type(module).forward, held.get("forward")), plain, hooks, list(module._modules.items())


def asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether the code of a class, outside of torch, names ``training``: it may compute something else in eval mode."""
    classes = [cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] not in ("torch", "builtins")]
    functions = [f for cls in classes for f in vars(cls).values() if isinstance(f, types.FunctionType)]
    waiting = [f.__code__ for f in functions]
    for code in waiting:  # grows on the way: functions inside of functions
        if "training" in code.co_names:
            return True
        waiting.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    return False


def _leaves_rows(hook: Any) -> bool:
    """Whether a hook is of sharding or gradient reduction, or asks embeddings for gradients, to recompute.

    The latter are of transformers and PEFT; transformers 5 adds one in every `Trainer.train` with checkpointing.
    """
    home, name = str(getattr(hook, "__module__", "")), str(getattr(hook, "__name__", ""))
    asks = home.partition(".")[0] in ("transformers", "peft") and name.startswith("make_inputs_require_grad")
    return asks or home.startswith("torch.distributed")
