"""What a forward changes outside of its tensors: attributes, the objects that modules hold, generators."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.recording.tables import Tables
from graphaug.capture.recording.values.inside import attributes_of
from graphaug.capture.state import ModelState, python_draws
from graphaug.proof.independence.scopes import Scopes


class Outside:
    """What modules, and the plain objects that they hold, keep beside tensors; to see whether a forward changes it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.state = model, ModelState(model, tensors=False)
        self.python = python_draws()
        self.torch = torch.get_rng_state()
        held = [
            (path, m, v)
            for path, m in model.named_modules()
            for v in vars(m).items()
            if _is_plain_object(v[1])
        ]
        self.objects = [(path, m, name, v, dict(vars(v))) for path, m, (name, v) in held]
        self.scopes, self.tables = Scopes(model), Tables(model)

    def restore(self) -> None:
        """Put the plain objects back, and what lies beside the model; of modules and generators others take care."""
        self.scopes.restore()
        self.tables.put_back_moved()
        for _, _, _, value, before in self.objects:
            vars(value).clear()
            vars(value).update(before)

    def drawn(self) -> str:
        """Whether something draws or seeds where no operation shows it, as a clause, or an empty string."""
        if python_draws() != self.python:
            return "the prefix draws from Python's or numpy's generator, once for each part of the rows"
        if not torch.equal(torch.get_rng_state(), self.torch):
            return "the prefix seeds torch's generator"
        if name := self.tables.moved():
            return f"the prefix takes from '{name}', once for each part of the rows"
        return ""

    def changed(
        self, fakes: Mapping[str, Any], given: Mapping[str, Any], of_rows: Callable[[Tensor], bool]
    ) -> str:
        """What changed since, as a clause, or an empty string; of a tensor ``of_rows`` tells whether it has any."""
        for name in self.state.changes():
            path, _, attribute = name.rpartition(".")
            now = getattr(self.model.get_submodule(path), attribute, None)
            if isinstance(now, Tensor) and now.requires_grad and not of_rows(now):
                # a weight that a hook makes of parameters (torch's old weight_norm, pruning): the code of a loss may
                # read it, and would find the one of the run without gradient
                made = f"{stated(self.model, name)} is made anew in every forward"
                return f"{made}, and a run without gradient would leave one that has none"
            if counts(now):
                return f"{stated(self.model, name)} keeps state of the batch"
        for name, tensor in given.items():
            if fakes.get(name) is not tensor:
                return f"{stated(self.model, name.removeprefix('model.'))} keeps state of the batch"
        for path, _, name, value, before in self.objects:
            if any(before.get(k, self) is not v for k, v in vars(value).items()):
                return f"{stated(self.model, f'{path}.{name}'.removeprefix('.'))} keeps state of the batch"
        if name := self.scopes.changed():
            return f"'{name}', kept outside of the model, holds state of the batch"
        if name := self.tables.filled():
            return f"'{name}' keeps state of the batch"
        return ""


def _is_plain_object(value: Any) -> bool:
    kinds = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, torch.dtype)
    return attributes_of(value) is not None and not isinstance(value, kinds)


def stated(model: nn.Module, name: str) -> str:
    """A module and its attribute, for messages: ``Linear '1.fc' (weight)``."""
    path, _, attribute = name.rpartition(".")
    return f"{type(model.get_submodule(path)).__name__} '{path}' ({attribute})"


def counts(value: Any) -> bool:
    """Whether a value holds tensors or numbers: what two runs instead of one would change twice."""
    leaves = value if isinstance(value, set) else torch.utils._pytree.tree_leaves(value)
    return any(isinstance(leaf, (Tensor, int, float)) for leaf in leaves)
