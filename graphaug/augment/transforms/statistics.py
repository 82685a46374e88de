"""New style for the augmented rows: each row's mean and standard deviation per channel are replaced."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice
from graphaug.augment.shapes import along_rows, check_rows, draw_dtype, position_dims, precise
from graphaug.augment.transform import PLAIN, SHARE, Context, Domain, Needs, SiteOptions, Transform, random_of
from graphaug.augment.transforms.partners import random_partners, symmetric_beta
from graphaug.errors import BatchError, InvalidOption

METHODS = ("mixstyle", "dsu")


class MixedStyle(NamedTuple):
    """What MixStyle drew for n rows: whether it acts, (1,), each row's partner, (n,), and λ, (n,)."""

    active: Tensor
    partners: Tensor
    lam: Tensor


class NewStyle(NamedTuple):
    """What DSU drew for n rows: whether it acts, (1,), and normal numbers of each row and channel."""

    active: Tensor
    mean: Tensor
    std: Tensor


class Statistics(Transform):
    """MixStyle or DSU: ``(rows - mean) / std * new_std + new_mean``, with a row's statistics over its positions.

    ``"mixstyle"`` (Zhou et al. 2021): the new statistics are ``λ·own + (1-λ)·partner's`` with
    λ ~ Beta(alpha, alpha) for each row, and no gradient passes through statistics. ``"dsu"`` (Li et al. 2022):
    they are drawn around the row's own, from a normal distribution with the standard deviation that they have over
    the rows, and the gradient passes through all of it, as in the authors' code.

    Args:
        method: which.
        alpha: of MixStyle, above 0, 0.1 if not given; a number for ``set``.
        scale: of DSU, the noise in units of the standard deviation over rows, at least 0, 1 if not given; a number for
            ``set``.
        probability: that a forward acts, on all its rows at once (0.5 in the code of both; here 1, since which rows are
            augmented is drawn already); a number for ``set``.
        eps: added to each variance, above 0.
        site: options of its site, as of `Transform`.

    Variances are unbiased. One row alone has no partner, and no spread to draw from: it stays as it is.

    Raises:
        InvalidOption: an option outside its domain, or one that the method does not have.
        BatchError: when it draws, for rows with fewer than two positions, of which there is no variance.

    Example:
        >>> import torch, graphaug as ga
        >>> style, rows = ga.Statistics("mixstyle"), torch.randn(4, 3, 8, 8)
        >>> out = style(rows, style.draw(rows))
        >>> out.shape
        torch.Size([4, 3, 8, 8])
    """

    probability: Tensor
    shown = ("method", "eps")

    @checked_names
    def __init__(
        self,
        method: str = "mixstyle",
        *,
        alpha: float | None = None,
        scale: float | None = None,
        probability: float = 1.0,
        eps: float = 1e-6,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.method = check_choice("method", method, METHODS)
        for name, value, owner in (("alpha", alpha, "mixstyle"), ("scale", scale, "dsu")):
            if value is not None and method != owner:
                raise InvalidOption(f"{name}={value!r} is of method={owner!r}, and not of {method!r}.")
        if method == "mixstyle":
            self.add_number("alpha", 0.1 if alpha is None else alpha, Domain(low=0, above=True))
        else:
            self.add_number("scale", 1.0 if scale is None else scale, Domain(low=0))
        self.add_number("probability", probability, SHARE)
        self.eps = Domain(low=0, above=True).check("eps", eps)
        mixes = method == "mixstyle"
        self.needs = Needs(partners=mixes, statistics=not mixes, gradient=not mixes)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> MixedStyle | NewStyle:
        """Draw for rows of shape (n, C, …) or (n, T, D)."""
        check_rows(rows)
        places = position_dims(rows.dim())
        positions = 1
        for dim in places:
            positions *= rows.shape[dim]
        if positions < 2:
            raise BatchError(
                f"Rows of shape {tuple(rows.shape)} have no two positions to take a variance over."
            )
        generator, device, dtype = context.generator, rows.device, draw_dtype(rows)
        uniform = torch.rand(1, dtype=torch.float32, device=device, **random_of(generator))
        active = uniform < self.probability.to(uniform.dtype)
        if self.method == "mixstyle":
            partners = random_partners(rows, None, generator)[0]
            lam = symmetric_beta(rows.shape[0], self.get_buffer("alpha"), device, generator)
            return MixedStyle(active, partners, lam.to(dtype))
        shape = [1 if i in places else n for i, n in enumerate(rows.shape)]
        mean = torch.randn(shape, dtype=dtype, device=device, **random_of(generator))
        std = torch.randn(shape, dtype=dtype, device=device, **random_of(generator))
        return NewStyle(active, mean, std)

    def forward(self, rows: Tensor, draws: MixedStyle | NewStyle) -> Tensor:
        """Restyle rows of shape (n, C, …) or (n, T, D)."""
        if rows.shape[0] < 2:
            return rows
        values, places = precise(rows), position_dims(rows.dim())
        mean = values.mean(places, keepdim=True)
        std = (values.var(places, keepdim=True) + self.eps).sqrt()
        if isinstance(draws, MixedStyle):
            mean, std = mean.detach(), std.detach()
            lam = along_rows(draws.lam, rows)
            new_mean = lam * mean + (1 - lam) * mean.index_select(0, draws.partners)
            new_std = lam * std + (1 - lam) * std.index_select(0, draws.partners)
        else:
            scale = self.get_buffer("scale").to(values.dtype)
            new_mean = mean + scale * draws.mean * self._spread(mean)
            new_std = std + scale * draws.std * self._spread(std)
        restyled = (values - mean) / std * new_std + new_mean
        return torch.where(draws.active, restyled.to(rows.dtype), rows)

    def _spread(self, statistic: Tensor) -> Tensor:
        """The standard deviation of a statistic over the rows."""
        return (statistic.var(0, keepdim=True) + self.eps).sqrt()
