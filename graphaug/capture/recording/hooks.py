"""Forward hooks of opened modules, as nodes: each call of the graph calls the hooks that the module has by then."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module


def run_pre_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """What a module's forward pre-hooks make of its arguments."""
    args = tuple(args)
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            found = hook(module, args, kwargs)
            if found is not None:
                args, kwargs = found
        else:
            found = hook(module, args)
            if found is not None:
                args = found if isinstance(found, tuple) else (found,)
    return args, kwargs


def run_forward_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What a module's forward hooks make of its output."""
    for key, hook in list(module._forward_hooks.items()):
        if key in module._forward_hooks_with_kwargs:
            found = hook(module, tuple(args), kwargs, output)
        else:
            found = hook(module, tuple(args), output)
        if found is not None:
            output = found
    return output


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks on its gradients."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def hooks_of_every_module() -> list[Any]:
    """The hooks that torch calls for all modules, its own tools' aside: a profiler's, a counter's of FLOPs."""
    hooks = [
        *torch_module._global_forward_hooks.values(),
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_backward_hooks.values(),
        *torch_module._global_backward_pre_hooks.values(),
    ]
    return hooks and [h for h in hooks if not str(getattr(h, "__module__", "")).startswith("torch.")]
