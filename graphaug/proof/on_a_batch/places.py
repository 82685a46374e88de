"""A module that came to stand at a second place of a model: what is hooked at the one is not what runs at the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from torch import fx, nn

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name)


def set_apart(model: nn.Module, path: str, graph: fx.Graph) -> Callable[[], None]:
    """Put a stand-in, with the same parts and code, at other places where the module at a path stands by now.

    Where it had two names when it was captured, the graph calls it by one: those are left. Returns what puts back.
    """
    module = model.get_submodule(path)
    named = list(_places(model))
    called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    others = [p for p, m in named if m is module and p != path and any(_related(p, c) for c in called)]
    count: dict[int, int] = {}
    for _, m in named:
        count[id(m)] = count.get(id(m), 0) + 1
    put_back: list[tuple[nn.Module, str, nn.Module]] = []
    for other in others:
        owner, own = model, False
        for name in other.split("."):
            child = owner._modules[name]
            assert child is not None
            if own or count[id(child)] > 1:
                stand_in = _stand_in(child)
                put_back.append((owner, name, child))
                owner._modules[name] = child = stand_in
                own = True
            owner = child

    def undo() -> None:
        for owner, name, child in reversed(put_back):
            owner._modules[name] = child

    return undo


def _places(
    module: nn.Module, path: str = "", around: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, nn.Module]]:
    """Every place of a model with what stands there; one that holds a module around it is not followed."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None and not any(child is m for m in (*around, module)):
            yield from _places(child, f"{path}.{name}".removeprefix("."), (*around, module))


def _related(path: str, called: str) -> bool:
    return path == called or called.startswith(f"{path}.") or path.startswith(f"{called}.")


def _stand_in(module: nn.Module) -> nn.Module:
    """Another module of the same class with the same tensors, and with children and hooks of its own."""
    made: nn.Module = nn.Module.__new__(type(module))
    made.__dict__.update(module.__dict__)
    for name in ("_modules", *_HOOKS):
        made.__dict__[name] = copy.copy(module.__dict__[name])
    return made
