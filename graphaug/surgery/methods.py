"""The methods of a model besides its forward: they run its modules as they are, without the augmentation."""

from __future__ import annotations

import dis
import functools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


def running_methods(model: nn.Module) -> tuple[str, ...]:
    """Public methods of the model's own class that call its children, the forward excepted.

    Read off their code, without running it: a call ``self.child(...)`` or a loop over ``self.child``.
    """
    children = set(model._modules)
    found: dict[str, None] = {}
    for cls in type(model).__mro__:
        if cls is nn.Module:
            break
        for name, value in vars(cls).items():
            public = not name.startswith("_") and name != "forward" and isinstance(value, types.FunctionType)
            if public and children.intersection(_run_by(value)):
                found[name] = None
    return tuple(found)


def _run_by(function: types.FunctionType) -> Iterator[str]:
    """Attributes that a function calls, or loops over to call what is in them."""
    instructions = list(dis.get_instructions(function))
    calls_a_local = any(map(_is_call_of_a_local, instructions, instructions[1:]))
    for instruction, behind in zip(instructions, [*instructions[1:], None], strict=True):
        called = instruction.opname == "LOAD_METHOD" or (
            instruction.opname == "LOAD_ATTR" and instruction.argrepr.startswith("NULL|self")
        )
        looped = instruction.opname == "LOAD_ATTR" and behind is not None and behind.opname == "GET_ITER"
        looped &= calls_a_local  # else it sets something of each, as set_grad_checkpointing does
        if (called or looped) and isinstance(instruction.argval, str):
            yield instruction.argval


def _is_call_of_a_local(first: dis.Instruction, second: dis.Instruction) -> bool:
    null, local = (second, first) if sys.version_info >= (3, 13) else (first, second)
    return null.opname == "PUSH_NULL" and "LOAD_FAST" in local.opname


def watched(
    method: Callable[..., Any], model: nn.Module, training: Callable[[], bool], warned: set[str]
) -> Callable[..., Any]:
    """The method, which warns the first time that it runs modules of the model in training mode."""
    name = getattr(method, "__name__", "")
    if torch.compiler.is_compiling() or name in vars(nn.Module):
        return method

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if name in warned or not training():
            return method(*args, **kwargs)
        ran: list[nn.Module] = []
        own = set(model.modules())
        handle = register_module_forward_pre_hook(
            lambda module, _: ran.append(module) if module in own else None
        )
        try:
            return method(*args, **kwargs)
        finally:
            handle.remove()
            if ran:
                warned.add(name)
                warnings.warn(
                    f"{type(model).__name__}.{name}() runs the model as it is: what graphaug.rewrite put into its "
                    "forward does not act there. Call the rewritten model itself to train with it.",
                    UserWarning,
                    stacklevel=2,
                )

    return call
