"""Principal directions of the activations taken out of the augmented rows."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice, check_flag
from graphaug.augment.shapes import channel_dim, check_rows, precise
from graphaug.augment.transform import PLAIN, Context, Domain, Needs, SiteOptions, Transform
from graphaug.errors import InvalidOption

REMOVE = ("first", "last")
OVER = ("row", "token")


class Fitted(NamedTuple):
    """The principal directions of m samples with d features.

    Attributes:
        mean: (d,).
        directions: (d, r), orthonormal, r = min(m, d), by falling variance.
        variances: of the samples along them, times m - 1, (r,).
        rank: how many of them have a variance that is not rounding, ().
        batch: the samples themselves, (m, d), if the gradient passes through the fit.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rank: Tensor
    batch: Tensor | None = None


class PCA(Transform):
    """Rows without their first or last k principal directions: ``h - (h - mean) V Vᵀ``.

    From the later versions of the Deep Augmentation paper. The directions are those of ``Context.batch`` or else
    of the rows. A row keeps its shape, and the mean is not removed.

    Args:
        k: how many directions are removed, a whole number of at least 0; a number for ``set``. Only directions
            that have variance count, at most one fewer than there are samples; of fewer than k of them all are removed.
        remove: the ``"first"``, of the largest variance, or the ``"last"``.
        over: a sample is a ``"row"``, flattened, or a ``"token"``: a position with its channels.
        gradient: the gradient passes through mean and directions too, so that it is the whole derivative by the batch.
            Without it they are constants, and rows do not meet in the backward.
        site: options of its site, as of `Transform`.

    The derivative is that of the projector on the removed directions, which exists where the variances on the two
    sides of the limit differ; it is exact to first order, and has no second derivative. One row alone stays as it is.

    Raises:
        InvalidOption: an option outside its domain.

    Example:
        >>> import torch, graphaug as ga
        >>> rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.1], [0.0, -0.1]])
        >>> pca = ga.PCA(k=1)
        >>> pca(rows, pca.draw(rows)).abs().round(decimals=4)
        tensor([[0.0000, 0.0000],
                [0.0000, 0.0000],
                [0.0000, 0.1000],
                [0.0000, 0.1000]])
    """

    k: Tensor
    shown = ("remove", "over", "gradient")

    @checked_names
    def __init__(
        self,
        k: int = 1,
        *,
        remove: str = "first",
        over: str = "row",
        gradient: bool = False,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.add_number("k", k, Whole(low=0))
        self.remove = check_choice("remove", remove, REMOVE)
        self.over = check_choice("over", over, OVER)
        self.gradient = check_flag("gradient", gradient)
        self.needs = Needs(statistics=True, gradient=gradient)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Fitted:
        """Fit the directions on a batch of shape (n, …)."""
        check_rows(rows)
        samples = self._samples(precise(rows if context.batch is None else context.batch))
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            mean = samples.mean(0)
            _, singular, directions = torch.linalg.svd(samples - mean, full_matrices=False)
            # centred samples have one direction fewer than there are of them; its variance is rounding
            limit = singular[:1] * max(samples.shape) * torch.finfo(samples.dtype).eps
            rank = (singular > limit).sum()
        return Fitted(mean, directions.mT, singular.square(), rank, samples if self.gradient else None)

    def told(self, draws: Any) -> None:
        """Nothing: the directions may be as large as the batch."""

    def _samples(self, rows: Tensor) -> Tensor:
        """The samples of a batch, (m, d)."""
        if self.over == "row":
            return rows.flatten(1)
        return rows.movedim(channel_dim(rows.dim()), -1).flatten(0, -2)

    def forward(self, rows: Tensor, draws: Fitted) -> Tensor:
        """Remove the directions from rows of shape (n, …)."""
        values = precise(rows)
        samples = self._samples(values)
        removed = self._removed(draws)
        with torch.autocast(rows.device.type, enabled=False):
            if draws.batch is None:
                mean, basis = draws.mean, draws.directions * removed
            else:
                mean, basis = moved_fit(draws, draws.batch, removed)
            without = samples - ((samples - mean) @ basis) @ basis.mT
        if self.over == "row":
            return without.view_as(values).to(rows.dtype)
        channel = channel_dim(rows.dim())
        return without.view_as(values.movedim(channel, -1)).movedim(-1, channel).to(rows.dtype)

    def _removed(self, draws: Fitted) -> Tensor:
        """Which of the directions are removed, as numbers 0 and 1 of shape (r,)."""
        place = torch.arange(draws.variances.shape[0], device=draws.mean.device)
        chosen = place < self.k if self.remove == "first" else place >= draws.rank - self.k
        return (chosen & (place < draws.rank)).to(draws.mean.dtype)


class Whole(Domain):
    """Whole numbers of a domain."""

    def check(self, name: str, value: object) -> float:
        """Return the value as a float; ``InvalidOption`` if it is not whole, or outside."""
        number = super().check(name, value)
        if not number.is_integer():
            raise InvalidOption(f"{name}={value!r} is no whole number.")
        return number


def moved_fit(fit: Fitted, batch: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and removed directions as functions of the batch, their values those of the fit.

    The directions turn by first-order perturbation theory: by ``v_j (v_jᵀ C v_i) / (λ_i - λ_j)`` towards every
    direction j that stays, C being the scatter matrix. What turns within the removed ones does not change the
    projector, so it is left out, and with it the divisions by differences within a group that make the derivative
    of an eigenvector undefined.
    """
    v, variances = fit.directions, fit.variances
    mean = batch.mean(0)
    centred = batch - mean
    scattered = centred.mT @ (centred @ v)  # C V, (d, r)
    inside = v.mT @ scattered  # v_jᵀ C v_i in row j, column i
    pairs = (1 - removed)[:, None] * removed
    gap = variances - variances[:, None]
    turn = v @ (inside * pairs / torch.where(pairs > 0, gap, 1.0))
    # directions outside the span of the batch have λ = 0
    turn = turn + (scattered - v @ inside) * (removed / torch.where(removed > 0, variances, 1.0))
    return mean, v * removed + (turn - turn.detach())
