"""The augmentation itself: dropout on a random subset of the rows, optionally with their gradient stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice, check_probability
from graphaug.augment.rows import BATCH, Rows, channel_beside
from graphaug.augment.site import Augmentation


class DeepAugment(Augmentation):
    """Dropout on a random subset of the rows of a batch (Deep Augmentation; docs/deep-augmentation.md).

    In training mode ``out = where(rows, stop(h * keep / (1 - rate)), h)``; in eval mode the identity.
    Rate and subset live in non-persistent buffers, so that changing them recompiles nothing and the
    state_dict of the model around stays as it was.

    Args:
        rate: dropout probability on the augmented rows, in [0, 1].
        subset: share of all rows that is augmented, in [0, 1].
        stop_grad: detach the augmented rows behind the dropout.
        sampling: ``"exact"`` augments ``round(subset * rows)`` rows (half to even), drawn uniformly
            without replacement; ``"bernoulli"`` augments each row with probability ``subset``.
        granularity: what one dropout decision covers: an ``"element"``; a ``"channel"`` (dimension 1
            of N×C×…, the last of N×T×D and N×D); a ``"position"`` (a place or token over all its
            channels; of N×D the whole row).
        pairing: ``"any"`` row, or ``"one-sided"``: the first half of the rows only. ``subset`` stays a
            share of *all* rows, so one-sided augmentation reaches at most 0.5; bernoulli then draws
            each row of the first half with probability ``2 * subset``. ``"together"``: both views of a
            sample or neither, rows ``i`` and ``i + rows/2``; with ``rewrite(..., views=k)`` all k of them.
        place: where the rows, which are samples, lie in the value; by default along dimension 0.

    A batch of a single row is augmented as the share says after rounding: exactly at a subset above 0.5, never below or
    at it; with bernoulli sampling with probability ``subset``; under one-sided pairing never, as it has no first half.

    Raises:
        InvalidOption: a value outside its domain.

    Examples:
        >>> import torch, graphaug as ga
        >>> out = ga.DeepAugment(rate=1.0, subset=0.5)(torch.ones(4, 3))
        >>> out.sum(dim=1).sort().values
        tensor([0., 0., 3., 3.])
    """

    rate: Tensor

    @checked_names
    def __init__(
        self,
        rate: float = 0.5,
        subset: float = 0.5,
        stop_grad: bool = False,
        sampling: str = "exact",
        granularity: str = "element",
        pairing: str = "any",
        place: Rows = BATCH,
    ) -> None:
        super().__init__(subset, stop_grad, sampling, pairing, place)
        self._rate = check_probability("rate", rate)
        self.granularity = check_choice("granularity", granularity)
        self.register_buffer("rate", torch.tensor([self._rate], dtype=torch.float64), persistent=False)

    def numbers(self) -> dict[str, float]:
        """Rate and subset."""
        return {"rate": self._rate, **super().numbers()}

    def check(self, **numbers: float) -> None:
        """Raise ``InvalidOption`` if `set` would."""
        if "rate" in numbers:
            check_probability("rate", numbers.pop("rate"))
        super().check(**numbers)

    def set(self, **numbers: float) -> None:
        """Change rate or subset in place; nothing is recompiled but, by the subset, a sparse step.

        Raises:
            InvalidOption: an unknown name, or a value outside its domain.
        """
        self.check(**numbers)
        if "rate" in numbers:
            self._rate = float(numbers.pop("rate"))
            self.rate.fill_(self._rate)
        super().set(**numbers)

    def set_rate(self, rate: float) -> None:
        """Change the dropout probability in place; nothing is recompiled.

        Raises:
            InvalidOption: outside [0, 1].
        """
        self.set(rate=rate)

    def _augment(self, h: Tensor) -> Tensor:
        self.check_batch(h)
        rows = self.draw_rows(self.place.count(h.shape), h.device)
        out = h * self.draw_noise(h)
        self.remember(rows)
        if self.stop_grad:
            out = out.detach()
        return torch.where(self.place.over(rows, h), out, h)

    def change(self, gone: Tensor, rows: Tensor, index: Tensor | None, whole: Callable[[], Tensor]) -> Tensor:
        """Drop units of augmented rows that a sparse step has apart."""
        self.remember(rows, index)
        return gone * self.draw_noise(gone)

    def draw_noise(self, h: Tensor) -> Tensor:
        """Draw the dropout's factors, 0 or 1/(1-rate), broadcastable to ``h`` and of its dtype."""
        uniform = torch.rand(noise_shape(tuple(h.shape), self.granularity, self.place.dim), device=h.device)
        kept = uniform >= self.rate.to(uniform.dtype)
        # at rate 1 nothing is kept: the scale must be finite there, or 0 * inf makes NaN
        scale = torch.where(self.rate < 1, 1 / (1 - self.rate), 0.0)
        return kept * scale.to(h.dtype)

    def halving(self) -> dict[str, Any]:
        """Methods to put in the place of its own, so that it halves its rows and draws nothing for it."""
        return {"draw_noise": lambda h: h.new_full((1,) * h.dim(), 0.5)}

    def _exact_numbers(self) -> dict[str, float]:
        return {"rate": self._rate, **super()._exact_numbers()}

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"rate={self._rate:g}, subset={self._subset:g}, stop_grad={self.stop_grad}, "
            f"sampling={self.sampling!r}, granularity={self.granularity!r}, pairing={self.pairing!r}"
        )


def noise_shape(shape: tuple[int, ...], granularity: str, rows: int = 0) -> tuple[int, ...]:
    """The shape of the dropout decisions for a batch of ``shape``: 1 along what is dropped together.

    N×C×H×W (and any rank above 3): channels are the dimension behind the rows. N×T×D and T×N×D: the last dimension.
    N×D: the last.

    Args:
        shape: of the value.
        granularity: what is dropped together.
        rows: the dimension of the rows.
    """
    channel = channel_beside(len(shape), rows)
    if granularity == "element":
        return shape
    if granularity == "channel":
        return tuple(n if i in (rows, channel) else 1 for i, n in enumerate(shape))
    return tuple(1 if i == channel else n for i, n in enumerate(shape))
