"""What a captured graph relies on of a model's tensors as objects: which of them are one, and what was set on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphaug.errors import AssumptionViolated


@dataclass(frozen=True)
class Tied:
    """Which tensors of a model are one and the same, where its code compares them by ``is``, ``id`` or a set.

    Attributes:
        groups: the names of those that are one.
    """

    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Tied:
        """Those of a model, as it is now."""
        names: dict[int, list[str]] = {}
        for name, tensor in _tensors(model):
            names.setdefault(id(tensor), []).append(name)
        return cls(tuple(tuple(group) for group in names.values() if len(group) > 1))

    def check(self, model: nn.Module) -> None:
        """Raise unless the same are one.

        Raises:
            AssumptionViolated: some were tied, or untied, since.
        """
        if torch.compiler.is_compiling() or self.groups == (now := Tied.of(model).groups):
            return
        changed = next(iter({*now, *self.groups} - ({*now} & {*self.groups})))
        raise AssumptionViolated(
            f"this model was captured before {' and '.join(changed)} were tied or untied. Call rewrite again."
        )


@dataclass(frozen=True, eq=False)
class Unmarked:
    """That a model's tensors have no attributes that code asks each of them for: ``getattr(p, "frozen", False)``.

    Attributes:
        names: the attributes.
        tensors: those that have none of them.
    """

    names: frozenset[str]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: nn.Module, names: frozenset[str]) -> Unmarked:
        """The tensors of a model that have none of these attributes, as it is now."""
        found = {id(t): t for _, t in _tensors(model) if names.isdisjoint(vars(t))}
        return cls(names, tuple(found.values()))

    def check(self, model: nn.Module) -> None:
        """Raise unless there are none still.

        Raises:
            AssumptionViolated: one was set since.
        """
        if torch.compiler.is_compiling():
            return
        for tensor in self.tensors:
            if (held := tensor.__dict__) and not self.names.isdisjoint(held):
                name = min(self.names & held.keys())
                raise AssumptionViolated(
                    f"this model was captured before {name!r} was set on one of its tensors. Call rewrite again."
                )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
