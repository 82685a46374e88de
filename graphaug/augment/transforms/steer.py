"""Steering and patching: a vector, or the activation of another input, added to the rows or put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.shapes import channel_dim, check_rows
from graphaug.augment.transform import PLAIN, Context, Domain, Needs, SiteOptions, Transform
from graphaug.errors import BatchError, InvalidOption


class Steered(NamedTuple):
    """What was handed in: the activation of the other input, broadcastable to the rows."""

    value: Tensor


class _Steer(Transform):
    """What Add and Replace share: the vector or source, and the tokens that it is for."""

    vector: Tensor | None

    @checked_names
    def __init__(
        self, vector: Tensor | None, positions: Sequence[int] | None, **site: Unpack[SiteOptions]
    ) -> None:
        super().__init__(**site)
        if vector is not None and not (isinstance(vector, Tensor) and vector.is_floating_point()):
            raise InvalidOption(f"vector={vector!r} is no floating-point tensor.")
        whole = positions is None or (
            isinstance(positions, Iterable)
            and all(isinstance(i, int) and not isinstance(i, bool) for i in positions)
        )
        if not whole:
            raise InvalidOption(
                f"positions={positions!r}: give a list of whole numbers, tokens in dimension 1, such as [0, -1]."
            )
        kept = None if vector is None else vector.detach().clone()
        self.register_buffer("vector", kept, persistent=False)
        self.positions = None if positions is None else tuple(positions)
        self.needs = Needs(source=vector is None)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Steered:
        """Take the vector or the other input's activation, fitted to rows of shape (n, …)."""
        check_rows(rows)
        if self.vector is not None:
            return Steered(self._fitted(self.vector, rows))
        source = context.source
        if source is None:
            raise BatchError(
                f"{type(self).__name__} without a vector needs the activation of another input: "
                "with aug.given(source=...): aug(x)."
            )
        if source.shape[1:] != rows.shape[1:] or source.shape[0] not in (1, rows.shape[0]):
            raise BatchError(
                f"A source of shape {tuple(source.shape)} does not fit rows of shape {tuple(rows.shape)}."
            )
        return Steered(source)

    def told(self, draws: Any) -> None:
        """Nothing: the loss has the vector."""

    def _fitted(self, vector: Tensor, rows: Tensor) -> Tensor:
        """The vector so that it broadcasts: of a whole row, or of the channels."""
        if vector.shape == rows.shape[1:]:
            return vector[None]
        channel = channel_dim(rows.dim())
        if vector.shape == rows.shape[channel : channel + 1]:
            return vector.view([-1 if i == channel else 1 for i in range(rows.dim())])
        raise BatchError(
            f"A vector of shape {tuple(vector.shape)} is neither a row of {tuple(rows.shape)} "
            f"nor its {rows.shape[channel]} channels."
        )

    def _chosen(self, rows: Tensor) -> Tensor:
        """Which tokens are changed, broadcastable to the rows."""
        if self.positions is None:
            return torch.ones([1] * rows.dim(), dtype=torch.bool, device=rows.device)
        if rows.dim() != 3:
            raise BatchError(f"positions are tokens, dimension 1 of (n, T, D), not of {tuple(rows.shape)}.")
        count = rows.shape[1]
        outside = [i for i in self.positions if not -count <= i < count]
        if outside:
            raise BatchError(
                f"positions {outside} are outside the {count} tokens of rows {tuple(rows.shape)}."
            )
        chosen = {i % count for i in self.positions}
        return torch.tensor([i in chosen for i in range(count)], device=rows.device).view(1, -1, 1)

    def extra_repr(self) -> str:
        """Show the options."""
        vector = None if self.vector is None else tuple(self.vector.shape)
        return ", ".join(filter(None, [super().extra_repr(), f"vector={vector}, positions={self.positions}"]))


class Add(_Steer):
    """Steering: ``rows + scale * v`` at some tokens or all (Turner et al. 2023, "Activation Addition").

    Args:
        vector: of the shape of a row, or one number a channel; kept as a copy, without gradient and outside the
            state_dict. If None, v is ``Context.source``: the activation of another input, with its gradient if it
            has one.
        scale: any finite number; one for ``set``.
        positions: the tokens of (n, T, D) that are steered, counted from the end if negative; all if None.
        site: options of its site, as of `Transform`.

    Raises:
        InvalidOption: an option outside its domain.
        BatchError: in a forward, if the vector, source or positions do not fit the rows, or the source is missing.

    Example:
        >>> import torch, graphaug as ga
        >>> steer = ga.Add(torch.tensor([1.0, 2.0]), scale=10.0, positions=[-1])
        >>> rows = torch.zeros(1, 2, 2)
        >>> steer(rows, steer.draw(rows))
        tensor([[[ 0.,  0.],
                 [10., 20.]]])
    """

    scale: Tensor

    @checked_names
    def __init__(
        self,
        vector: Tensor | None = None,
        *,
        scale: float = 1.0,
        positions: Sequence[int] | None = None,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(vector, positions, **site)
        self.add_number("scale", scale, Domain())

    def forward(self, rows: Tensor, draws: Steered) -> Tensor:
        """Steer rows of shape (n, …)."""
        step = self.scale.to(rows.dtype) * draws.value.to(rows.dtype)
        return torch.where(self._chosen(rows), rows + step, rows)


class Replace(_Steer):
    """Patching: v in place of the rows, at some tokens or all (Vig et al. 2020; Meng et al. 2022).

    Args:
        vector: of the shape of a row, or one number a channel; kept as a copy, without gradient and outside the
            state_dict. If None, v is ``Context.source``: the activation of another input, with its gradient if it
            has one.
        positions: the tokens of (n, T, D) that are replaced, counted from the end if negative; all if None.
        site: options of its site, as of `Transform`.

    Raises:
        InvalidOption: an option outside its domain.
        BatchError: in a forward, if the vector, source or positions do not fit the rows, or the source is missing.

    Example:
        >>> import torch, graphaug as ga
        >>> patch, rows = ga.Replace(positions=[0]), torch.zeros(1, 2, 2)
        >>> patch(rows, patch.draw(rows, ga.Context(source=torch.ones(1, 2, 2))))
        tensor([[[1., 1.],
                 [0., 0.]]])
    """

    @checked_names
    def __init__(
        self,
        vector: Tensor | None = None,
        *,
        positions: Sequence[int] | None = None,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(vector, positions, **site)

    def forward(self, rows: Tensor, draws: Steered) -> Tensor:
        """Patch rows of shape (n, …)."""
        return torch.where(self._chosen(rows), draws.value.to(rows.dtype), rows)
