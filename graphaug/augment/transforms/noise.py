"""Noise added to the augmented rows, of a size of its own or measured by the site's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice
from graphaug.augment.shapes import along_rows, check_rows, draw_dtype, precise
from graphaug.augment.transform import PLAIN, Context, Domain, Needs, SiteOptions, Transform, random_of
from graphaug.augment.transforms.partners import check_labels, class_spread
from graphaug.errors import BatchError

DISTRIBUTIONS = ("gaussian", "uniform")
RELATIVE = ("absolute", "site", "feature", "class", "neftune")


class Noised(NamedTuple):
    """What a noise drew: the noise of unit size, of the rows' shape, and the size that it is measured in."""

    noise: Tensor
    scale: Tensor


class Noise(Transform):
    """Noise, ``rows + sigma * scale * noise``.

    Args:
        sigma: the size of the noise in units of ``scale``, at least 0; a number for ``set``.
        distribution: ``"gaussian"``, of standard deviation 1; ``"uniform"`` between -1 and 1.
        relative: what ``scale`` is. ``"absolute"``: 1, the units of the activations. ``"site"``: the standard deviation
            over everything at the site. ``"feature"``: that of every feature over the rows (DeVries & Taylor
            2017). ``"class"``: that of every feature over the row's class (MODALS, Cheung & Yeung 2021).
            ``"neftune"``: ``1/sqrt(L·d)`` with L tokens of d channels, so that ``sigma`` is NEFTune's alpha (Jain
            et al. 2023, algorithm 1); with a mask L is the number of the row's real tokens, and only those get noise.
        site: options of its site, as of `Transform`.

    Standard deviations are unbiased, measured without gradient on ``Context.batch`` or else on the rows (``"class"``:
    always on the rows). One row alone has no spread, and stays as it is.

    Raises:
        InvalidOption: an option outside its domain.
        BatchError: when it draws, if labels are missing, or a mask is not of the tokens.

    Example:
        >>> import torch, graphaug as ga
        >>> noise, rows = ga.Noise(5.0, "uniform", "neftune"), torch.zeros(2, 4, 25)
        >>> bool(noise(rows, noise.draw(rows)).abs().max() <= 5 / (4 * 25) ** 0.5)
        True
        >>> noise.set(sigma=0.0)
    """

    sigma: Tensor
    shown = ("distribution", "relative")

    @checked_names
    def __init__(
        self,
        sigma: float = 0.1,
        distribution: str = "gaussian",
        relative: str = "absolute",
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.add_number("sigma", sigma, Domain(low=0))
        self.distribution = check_choice("distribution", distribution, DISTRIBUTIONS)
        self.relative = check_choice("relative", relative, RELATIVE)
        self.needs = Needs(statistics=relative in ("site", "feature", "class"), labels=relative == "class")

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Noised:
        """Draw noise of the shape of the rows, and measure its scale."""
        check_rows(rows)
        dtype, device, generator = draw_dtype(rows), rows.device, context.generator
        if self.distribution == "gaussian":
            noise = torch.randn(rows.shape, dtype=dtype, device=device, **random_of(generator))
        else:
            noise = torch.rand(rows.shape, dtype=dtype, device=device, **random_of(generator)) * 2 - 1
        return Noised(noise, self._scale(rows, context).to(noise.dtype))

    def told(self, draws: Any) -> None:
        """Nothing: the noise is as large as the rows."""

    def _scale(self, rows: Tensor, context: Context) -> Tensor:
        """The size of the noise at ``sigma=1``, broadcastable to the rows."""
        measured = precise((rows if context.batch is None else context.batch).detach())
        if self.relative == "site":
            spread = measured.std() if measured.numel() > 1 else measured.new_zeros(())
            return spread.view([1] * rows.dim())
        if self.relative == "feature":
            return class_spread(measured, None)
        if self.relative == "class":
            return class_spread(rows, check_labels(context.labels, rows))
        if self.relative == "neftune":
            return self._by_length(rows, context.mask)
        return torch.ones([1] * rows.dim(), device=rows.device)

    def _by_length(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            size = math.prod(rows.shape[1:])
            return torch.full(
                [1] * rows.dim(), 1 / math.sqrt(size), dtype=draw_dtype(rows), device=rows.device
            )
        if rows.dim() != 3 or mask.shape != rows.shape[:2]:
            raise BatchError(
                f"A mask of shape {tuple(mask.shape)} is not of the tokens of rows {tuple(rows.shape)}."
            )
        real = mask.to(draw_dtype(rows))
        lengths = real.sum(1).clamp(min=1)  # a row without tokens gets no noise, and no division by zero
        return along_rows(torch.rsqrt(lengths * rows.shape[2]), rows) * real[..., None]

    def forward(self, rows: Tensor, draws: Noised) -> Tensor:
        """Add the noise to rows of shape (n, …)."""
        size = self.sigma.to(draws.noise.dtype)
        return (rows + size * draws.scale * draws.noise).to(rows.dtype)
