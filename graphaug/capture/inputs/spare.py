"""Keywords that a forward takes along (``**kwargs``) and that make no difference to it, as a tokenizer's own notes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.state import seed, unchanged, undrawn


def makes_no_difference(
    model: nn.Module, examples: Mapping[str, Any], positional: tuple[str, ...], name: str
) -> bool:
    """Whether a model's forward does and returns the same with and without a keyword, in both modes.

    The same operations, on tensors of the same sizes and with the same numbers, and an output of the same layout.

    Args:
        model: the model.
        examples: its inputs by name.
        positional: the names of those that have a place.
        name: the keyword.
    """
    without = {key: value for key, value in examples.items() if key != name}
    try:
        with unchanged(model), undrawn(), torch.no_grad():
            return all(
                _done(model, examples, positional, training) == _done(model, without, positional, training)
                for training in (True, False)
            )
    except Exception:  # it needs the keyword; or it fails with it, which the capture will say
        return False


def run_once(model: nn.Module, inputs: Mapping[str, Any], positional: tuple[str, ...], training: bool) -> Any:
    """What a model's own forward returns in one mode, on copies of the inputs; what moves is left to the caller.

    Args:
        model: the model.
        inputs: by name.
        positional: the names of those that have a place.
        training: the mode.
    """
    model.train(training)
    seed(0)
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), dict(inputs))
    before_a_gap = itertools.takewhile(given.__contains__, positional)
    args = [given.pop(name) for name in list(before_a_gap)]
    return model.forward(*args, **given)


def _done(model: nn.Module, inputs: Mapping[str, Any], positional: tuple[str, ...], training: bool) -> Any:
    with _Operations() as operations:
        returned = run_once(model, inputs, positional, training)
    return operations.found, _layout(returned)


class _Operations(TorchDispatchMode):
    """Notes the operations that run in it, with sizes in the place of tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append((str(func), repr(_layout((args, kwargs or {})))))
        return func(*args, **(kwargs or {}))


def _layout(value: Any) -> Any:
    leaves, tree = torch.utils._pytree.tree_flatten(value)
    return repr(tree), [(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else repr(v) for v in leaves]
