"""What a site drew in the last forward, for the loss to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphaug.errors import BatchError

NOTHING_YET = "nothing has been drawn: call the model in training mode first."
INSIDE = (
    "what was drawn last is not kept: that forward ran inside of a transform of torch.func (grad, jvp, vmap, …), whose "
    "tensors do not outlive it. Read aug.drawn after a forward outside of one."
)


@dataclass(frozen=True)
class Drawn:
    """What was drawn at a site in one forward, without gradient; ``aug.drawn["layer4"]``.

    Attributes:
        rows: which rows of the batch were augmented, booleans of shape (B,).
        chosen: which rows ``draws`` is about, indices of shape (n,); None: it is about all B of them.
        draws: what the transform drew for those rows, as its ``told`` gives it; None for a dropout.

    Example:
        >>> import torch, graphaug as ga
        >>> rows, chosen = torch.tensor([True, False, True]), torch.tensor([0, 2])
        >>> ga.Drawn(rows, chosen, None).index
        tensor([0, 2])
    """

    rows: Tensor
    chosen: Tensor | None = None
    draws: Any = None

    @property
    def index(self) -> Tensor:
        """The rows that ``draws`` is about, as indices into the batch, (n,)."""
        if self.chosen is None:
            return torch.arange(self.rows.shape[0], device=self.rows.device)
        return self.chosen

    @property
    def partners(self) -> Tensor:
        """The partner of every row of ``index``, as an index into the batch, (n,); with two partners (n, 2).

        Raises:
            BatchError: the transform draws no partners.
        """
        partners: Tensor = self._entry("partners")
        return self.index[partners]

    @property
    def lam(self) -> Tensor:
        """λ of every row of ``index``, (n,).

        Raises:
            BatchError: the transform draws no λ.
        """
        lam: Tensor = self._entry("lam")
        return lam

    def in_words(self) -> str:
        """What was drawn besides the rows, as errors name it."""
        if self.draws is None:
            return "which rows alone"
        fields = getattr(self.draws, "_fields", ())
        return type(self.draws).__name__ + (f" ({', '.join(fields)})" if fields else "")

    def _entry(self, name: str) -> Any:
        if not hasattr(self.draws, name):
            raise BatchError(f"no {name} were drawn at this site, but {self.in_words()}.")
        return getattr(self.draws, name)


def detached(value: Any) -> Any:
    """What was drawn, without gradient."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        entries = [detached(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, dict):
        return {name: detached(entry) for name, entry in value.items()}
    return value
