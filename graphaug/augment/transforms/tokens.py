"""Some of the tokens kept, the others left out: what follows is shorter for all rows."""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_count, check_flag
from graphaug.augment.shapes import check_rows, draw_dtype
from graphaug.augment.transform import PLAIN, Context, Domain, Needs, SiteOptions, Transform
from graphaug.errors import BatchError


class KeptTokens(NamedTuple):
    """What was drawn: the indices of the tokens that each row keeps, (n, k), those of the prefix first."""

    kept: Tensor


class Tokens(Transform):
    """PatchDropout: each row keeps a random share of its tokens (Liu et al. 2023).

    Of T tokens behind the prefix ``max(1, floor(keep * T))`` are kept, uniformly without replacement; with a mask real
    tokens come before padding. Nothing is scaled. All rows of a batch have to go through it, since they get
    shorter, and what belongs to the tokens (masks, positions) has to follow: ``follow``.

    Args:
        keep: the share of tokens that is kept, in (0, 1]. A new share is a new shape, so ``set`` does not have it.
        prefix: how many tokens at the front are always kept: a class token, registers.
        ordered: the kept tokens stay in their order; else they come as they were drawn.
        site: options of its site, as of `Transform`.

    At a site it needs ``subset=1.0``.

    Raises:
        InvalidOption: an option outside its domain.
        BatchError: when it draws, for rows that are not (n, T, D), have no tokens behind the prefix, or a mask
            that is not of their tokens.

    Example:
        >>> import torch, graphaug as ga
        >>> from graphaug.augment.transforms.tokens import KeptTokens
        >>> tokens, rows = ga.Tokens(0.5, prefix=1), torch.arange(5.0).view(1, 5, 1)
        >>> tokens(rows, KeptTokens(torch.tensor([[0, 2, 3]])))[0, :, 0]
        tensor([0., 2., 3.])
        >>> tokens.draw(rows).kept.shape
        torch.Size([1, 3])
    """

    needs = Needs(new_tokens=True)
    shown = ("keep", "prefix", "ordered")

    @checked_names
    def __init__(
        self,
        keep: float = 0.5,
        *,
        prefix: int = 1,
        ordered: bool = True,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.keep = Domain(0, 1, above=True).check("keep", keep)
        self.prefix = check_count("prefix", prefix, 0)
        self.ordered = check_flag("ordered", ordered)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> KeptTokens:
        """Draw the kept tokens of rows of shape (n, T, D)."""
        check_rows(rows)
        if rows.dim() != 3 or rows.shape[1] <= self.prefix:
            raise BatchError(
                f"Tokens are dimension 1 of (n, T, D), behind {self.prefix} of the prefix, not of {tuple(rows.shape)}."
            )
        n, count = rows.shape[0], rows.shape[1] - self.prefix
        order = torch.rand(n, count, dtype=draw_dtype(rows), device=rows.device, **context.random)
        if context.mask is not None:
            if context.mask.shape != rows.shape[:2]:
                raise BatchError(
                    f"A mask of shape {tuple(context.mask.shape)} is not of the tokens of {tuple(rows.shape)}."
                )
            order = order + (context.mask[:, self.prefix :] == 0)  # padding behind every real token
        kept = torch.argsort(order, dim=1)[:, : max(1, math.floor(self.keep * count))]
        if self.ordered:
            kept = kept.sort(dim=1).values
        front = torch.arange(self.prefix, device=rows.device).expand(n, -1)
        return KeptTokens(torch.cat([front, kept + self.prefix], 1))

    def kept(self, draws: KeptTokens) -> Tensor:
        """The indices (n, k) of the tokens that each row keeps."""
        return draws.kept

    def forward(self, rows: Tensor, draws: KeptTokens) -> Tensor:
        """Keep tokens of rows of shape (n, T, D): (n, k, D)."""
        return self.follow(rows, draws)

    @staticmethod
    def follow(value: Tensor, draws: KeptTokens, dim: int = 1) -> Tensor:
        """Keep the same tokens along a dimension of something that belongs to them.

        Args:
            value: masks (n, T), positions (n, T, D) or, for all rows alike, (1, T, D), attention masks (n, heads,
                T, T).
            draws: what was drawn.
            dim: where the tokens lie; an attention mask follows along two dimensions, one after the other.

        Raises:
            BatchError: it has another number of rows.

        Example:
            >>> Tokens.follow(torch.tensor([[True, True, False]]), KeptTokens(torch.tensor([[0, 2]])))
            tensor([[ True, False]])
        """
        n, count = draws.kept.shape
        if value.shape[0] not in (1, n):
            raise BatchError(
                f"{value.shape[0]} rows of shape {tuple(value.shape)} cannot follow the tokens of {n} rows."
            )
        dim = dim % value.dim()
        full = value.expand(n, *value.shape[1:])
        shape = [n, *[1] * (value.dim() - 1)]
        shape[dim] = count
        target = [count if i == dim else size for i, size in enumerate(full.shape)]
        return full.gather(dim, draws.kept.view(shape).expand(target))
