"""Dropout of the augmented rows: elements, channels, positions, blocks of them, or attention heads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice, check_count, check_flag
from graphaug.augment.shapes import channel_dim, check_rows, draw_dtype, position_dims
from graphaug.augment.transform import PLAIN, SHARE, Context, SiteOptions, Transform, random_of
from graphaug.errors import BatchError, InvalidOption

GRANULARITIES = ("element", "channel", "position", "block", "head")
BLOCK_SIZE = 7  # that of Ghiasi et al. 2018


class Dropped(NamedTuple):
    """What a dropout drew: what it keeps, booleans that broadcast against the rows."""

    kept: Tensor


class Dropout(Transform):
    """Dropout, ``rows * kept / (1 - rate)`` (Srivastava et al. 2014), at some granularity.

    Args:
        rate: probability of being dropped, in [0, 1]; a number for ``set``.
        granularity: what one decision covers: an ``"element"``; a ``"channel"`` (dimension 1 of N×C×H×W and above, the
            last of N×T×D and N×D; Tompson et al. 2015); a ``"position"`` (a place or token over all its channels); a
            ``"block"`` of neighbouring positions (DropBlock, Ghiasi et al. 2018, algorithm 1); a ``"head"``
            (DropHead, Zhou et al. 2020): one of ``heads`` equal parts, one behind the other, of the last dimension of
            N×T×D and N×D, or dimension 1 of N×heads×T×d.
        block_size: side of a block, in positions, in each dimension that has so many; 7 if not given.
        shared: whether the blocks are those of all channels; else every channel has its own, as in the algorithm.
        heads: how many heads there are.
        site: options of its site, as of `Transform`.

    Blocks start where a whole one fits, with probability ``rate * positions / (block * starts)``, which drops a
    little less than ``rate`` as they overlap (equation 1 of the paper). What is left is scaled by the share that
    is kept in *each row*, not in the batch, so that rows stay independent; a row that keeps nothing is 0.

    Raises:
        InvalidOption: an option outside its domain, or one that the granularity does not have.
        BatchError: when it draws, for rows without positions (block), with more than three dimensions of them, or whose
            channels are no ``heads`` parts.

    Example:
        >>> import torch, graphaug as ga
        >>> from graphaug.augment.transforms.drop import Dropped
        >>> drop = ga.Dropout(0.5, "channel")
        >>> rows = torch.ones(2, 3, 4)  # two rows of three tokens with four channels
        >>> drop.draw(rows).kept.shape
        torch.Size([2, 1, 4])
        >>> kept = torch.tensor([True, False, True, True])
        >>> drop(rows, Dropped(kept))[0, 0]
        tensor([2., 0., 2., 2.])
    """

    rate: Tensor
    shown = ("granularity", "block_size", "shared", "heads")

    @checked_names
    def __init__(
        self,
        rate: float = 0.5,
        granularity: str = "element",
        *,
        block_size: int | None = None,
        shared: bool | None = None,
        heads: int | None = None,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.add_number("rate", rate, SHARE)
        self.granularity = check_choice("granularity", granularity, GRANULARITIES)
        for name, value, owner in (
            ("block_size", block_size, "block"),
            ("shared", shared, "block"),
            ("heads", heads, "head"),
        ):
            if value is not None and granularity != owner:
                raise InvalidOption(
                    f"{name}={value!r} is of granularity={owner!r}, and not of {granularity!r}."
                )
        if granularity == "head" and heads is None:
            raise InvalidOption("granularity='head' needs heads=, how many there are.")
        self.block_size = (
            None
            if granularity != "block"
            else check_count("block_size", BLOCK_SIZE if block_size is None else block_size, 1)
        )
        self.shared = check_flag("shared", bool(shared) if shared is None else shared)
        self.heads = None if heads is None else check_count("heads", heads, 1)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Dropped:
        """Draw what is kept of rows of shape (n, …)."""
        check_rows(rows)
        if self.granularity == "block":
            return Dropped(self._draw_blocks(rows, context.generator))
        shape = self._decisions(tuple(rows.shape))
        uniform = torch.rand(shape, dtype=torch.float32, device=rows.device, **context.random)
        kept = uniform >= self.rate.to(uniform.dtype)
        if self.granularity == "head" and rows.dim() < 4:
            kept = kept.repeat_interleave(rows.shape[-1] // shape[-1], dim=-1)
        return Dropped(kept)

    def told(self, draws: Any) -> None:
        """Nothing: what is kept is as large as the rows."""

    def _decisions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the decisions: 1 along what is dropped together."""
        channel = channel_dim(len(shape))
        if self.granularity == "element":
            return shape
        if self.granularity == "channel":
            return tuple(n if i in (0, channel) else 1 for i, n in enumerate(shape))
        if self.granularity == "position":
            return tuple(1 if i == channel else n for i, n in enumerate(shape))
        heads = self.heads or 1
        fits = shape[channel] == heads if len(shape) > 3 else shape[channel] % heads == 0
        if not fits:
            raise BatchError(
                f"{shape[channel]} channels in rows of shape {shape} are not those of heads={heads}."
            )
        return tuple({0: shape[0], channel: heads}.get(i, 1) for i in range(len(shape)))

    def _draw_blocks(self, rows: Tensor, generator: Generator | None) -> Tensor:
        channel, places = channel_dim(rows.dim()), [rows.shape[i] for i in position_dims(rows.dim())]
        if not 1 <= len(places) <= 3:
            raise BatchError(
                f"Blocks are of positions in one to three dimensions; "
                f"rows of shape {tuple(rows.shape)} have {len(places)}."
            )
        sides = [min(self.block_size or BLOCK_SIZE, n) for n in places]
        starts = [n - side + 1 for n, side in zip(places, sides, strict=True)]
        channels = 1 if self.shared else rows.shape[channel]
        shape = (rows.shape[0], channels, *starts)
        uniform = torch.rand(shape, dtype=torch.float32, device=rows.device, **random_of(generator))
        chance = self.rate * (math.prod(places) / math.prod(sides) / math.prod(starts))
        seeds = (uniform < chance.to(uniform.dtype)).to(uniform.dtype)
        # a start drops the block behind it: the maximum over the block in front of a position
        margins = [side - 1 for side in reversed(sides) for _ in range(2)]
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(places) - 1]
        kept = pool(F.pad(seeds, margins), sides, stride=1) == 0
        return kept.movedim(1, channel)

    def forward(self, rows: Tensor, draws: Dropped) -> Tensor:
        """Drop: rows of shape (n, …) times what was kept, scaled up."""
        kept = draws.kept
        if self.granularity == "block":
            share = kept.flatten(1).to(draw_dtype(rows)).mean(1).view(-1, *[1] * (rows.dim() - 1))
            scale = torch.where(share > 0, 1 / share, 0.0)
        else:
            # at rate 1 nothing is kept: the scale must be finite there, or 0 * inf makes NaN
            scale = torch.where(self.rate < 1, 1 / (1 - self.rate), 0.0)
        return rows * (kept * scale.to(rows.dtype))
