"""The augmentation itself: dropout on a random subset of the rows, optionally with their gradient stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from graphaug.augment.rows import BATCH, Rows
from graphaug.errors import BatchError, InvalidOption, did_you_mean

Sampling = Literal["exact", "bernoulli"]
Granularity = Literal["element", "channel", "position"]
Pairing = Literal["any", "one-sided"]

CHOICES: dict[str, tuple[str | None, ...]] = {
    "sampling": ("exact", "bernoulli"),
    "granularity": ("element", "channel", "position"),
    "pairing": ("any", "one-sided"),
    "freeze": (None, "before", "after"),
    "backward": ("auto", "dense", "sparse", "proved"),
}


def check_probability(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1].

    Raises:
        InvalidOption: it is no number, NaN, or outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidOption(f"{name}={value!r} is no number: give a float between 0 and 1.")
    if not 0.0 <= value <= 1.0:  # false for NaN too
        raise InvalidOption(f"{name}={value!r} is outside [0, 1].")
    return float(value)


def check_choice(name: str, value: object) -> str:
    """Return ``value`` if it is one of the option's spellings.

    Raises:
        InvalidOption: it is not; the message names the nearest one.
    """
    known = CHOICES[name]
    if value not in known:
        hint = did_you_mean(str(value), filter(None, known))
        raise InvalidOption(f"{name}={value!r} is unknown.{hint} Known: {', '.join(map(repr, known))}.")
    return str(value)


class DeepAugment(nn.Module):
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
            each row of the first half with probability ``2 * subset``.
        place: where the rows, which are samples, lie in the value; by default along dimension 0.

    A batch of a single row is augmented as the share says after rounding: exactly at a subset above 0.5, never below or
    at it; with bernoulli sampling with probability ``subset``; under one-sided pairing never, as it has no first half.

    Raises:
        InvalidOption: a value outside its domain.
    """

    rate: Tensor
    subset: Tensor

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
        super().__init__()
        self._rate = check_probability("rate", rate)
        self._spelled_subset = repr(check_probability("subset", subset))
        if not isinstance(stop_grad, bool):
            raise InvalidOption(f"stop_grad={stop_grad!r} is neither True nor False.")
        self.stop_grad = stop_grad
        self.sampling = check_choice("sampling", sampling)
        self.granularity = check_choice("granularity", granularity)
        self.pairing = check_choice("pairing", pairing)
        self.place = place
        self.check_pairing(self._subset)
        # one entry, not none: Dynamo takes a float64 scalar on the CPU for a Python number, and starts its trace,
        # autograd's included, once more when it finds that it was none
        self.register_buffer("rate", torch.tensor([self._rate], dtype=torch.float64), persistent=False)
        self.register_buffer("subset", torch.tensor([self._subset], dtype=torch.float64), persistent=False)

    @property
    def _subset(self) -> float:
        """The share of rows as a plain number.

        It is kept as text. Of a number that changes Dynamo makes a symbol, and of the two parts of a batch symbolic
        shapes: they take twice as long to compile, and what is compiled is for that one subset all the same.
        """
        return float(self._spelled_subset)

    def check_pairing(self, subset: float) -> None:
        """Raise ``InvalidOption`` if that share of rows cannot be drawn from the first half."""
        if self.pairing == "one-sided" and subset > 0.5:
            raise InvalidOption(
                f"subset={subset} with pairing='one-sided': only the first half of the rows can be drawn, "
                "so give a subset of at most 0.5."
            )

    def set_rate(self, rate: float) -> None:
        """Change the dropout probability in place; nothing is recompiled.

        Raises:
            InvalidOption: outside [0, 1].
        """
        self._rate = check_probability("rate", rate)
        self.rate.fill_(self._rate)

    def set_subset(self, subset: float) -> None:
        """Change the share of augmented rows in place; nothing is recompiled but a sparse step.

        Raises:
            InvalidOption: outside [0, 1], or above 0.5 with one-sided pairing.
        """
        value = check_probability("subset", subset)
        self.check_pairing(value)
        self._spelled_subset = repr(value)
        self.subset.fill_(value)

    def forward(self, h: Any) -> Any:
        """Augment a batch ``h`` of shape (rows, …), or with its rows elsewhere; of a tuple or mapping, its first entry.

        Raises:
            BatchError: in training mode, without rows, with an odd number of rows above 1 under
                one-sided pairing, or a value that is no floating-point tensor of rank 2 or more.
        """
        if not self.training:
            return h
        if isinstance(h, fx.Proxy):  # another tracing: this module is one node in it
            tracer: Any = h.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (h,), {})
        return on_first(h, self._augment)

    def _augment(self, h: Tensor) -> Tensor:
        self.check_batch(h)
        rows = self.draw_rows(self.place.count(h.shape), h.device)
        out = h * self.draw_noise(h)
        if self.stop_grad:
            out = out.detach()
        return torch.where(self.place.over(rows, h), out, h)

    def check_batch(self, h: Tensor) -> None:
        """Raise ``BatchError`` unless ``h`` is a batch that this augmentation is defined for."""
        self.check_value(h)
        slices, size = self.place.slices, h.shape[self.place.dim]
        if size % slices:
            raise BatchError(
                f"Deep Augmentation was placed where every sample has {slices} slices of dimension {self.place.dim}, "
                f"and a value of shape {tuple(h.shape)} has {size}: rewrite the model for such inputs."
            )
        self.check_rows(size // slices)

    def check_value(self, h: Tensor) -> None:
        """Raise ``BatchError`` unless ``h`` holds activations: a floating-point tensor of rank 2 or more."""
        if h.dim() < 2 or h.dim() <= self.place.dim or not h.is_floating_point():
            raise BatchError(
                f"Deep Augmentation needs a floating-point batch (rows, features, …), "
                f"not a {h.dtype} tensor of shape {tuple(h.shape)}: choose another site."
            )

    def check_rows(self, rows: int) -> None:
        """Raise ``BatchError`` for no rows, or an odd number of them above 1 under one-sided pairing."""
        if rows < 1:
            raise BatchError(
                "Deep Augmentation draws a subset of the rows of a batch, and this one has 0 rows."
            )
        if self.pairing == "one-sided" and rows % 2 and rows > 1:
            raise BatchError(f"pairing='one-sided' needs two views stacked as [x1; x2]: {rows} rows is odd.")

    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        """Draw the augmented rows: a boolean mask of shape (rows,)."""
        eligible = rows // 2 if self.pairing == "one-sided" else rows
        if self.sampling == "exact":
            # the ranks of a uniform permutation below k mark a uniform k-subset; k stays a tensor, so
            # that neither a new subset nor a new batch size is a new program
            drawn = torch.randperm(eligible, device=device) < torch.round(self.subset * rows)
        else:
            share = self.subset * (rows / max(eligible, 1))
            drawn = torch.rand(eligible, device=device) < share
        if eligible == rows:
            return drawn
        return torch.cat([drawn, drawn.new_zeros(rows - eligible)])

    def draw_noise(self, h: Tensor) -> Tensor:
        """Draw the dropout's factors, 0 or 1/(1-rate), broadcastable to ``h`` and of its dtype."""
        uniform = torch.rand(noise_shape(tuple(h.shape), self.granularity, self.place.dim), device=h.device)
        kept = uniform >= self.rate.to(uniform.dtype)
        # at rate 1 nothing is kept: the scale must be finite there, or 0 * inf makes NaN
        scale = torch.where(self.rate < 1, 1 / (1 - self.rate), 0.0)
        return kept * scale.to(h.dtype)

    def stopped_rows(self, rows: int) -> int:
        """How many of ``rows`` rows an exact draw augments, as a plain number.

        Raises:
            BatchError: no rows, or an odd number above 1 under one-sided pairing.
        """
        self.check_rows(rows)
        return self._exactly(rows)

    def count_rows(self, rows: int) -> int | None:
        """How many of ``rows`` rows are augmented, or None if that is itself random."""
        return self._exactly(rows) if self.sampling == "exact" else None

    def _exactly(self, rows: int) -> int:
        eligible = rows // 2 if self.pairing == "one-sided" else rows
        return min(round(self._subset * rows), eligible)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> DeepAugment:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # .half() and .to(bfloat16) round every floating buffer, to_empty() forgets it
        for name, value in (("rate", self._rate), ("subset", self._subset)):
            device = getattr(self, name).device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            setattr(self, name, torch.tensor([value], dtype=dtype, device=device))
        return self

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
    rank = len(shape)
    channel = (rows + 1) % rank if rank > 3 else rank - 1
    if channel == rows:
        channel = rank - 2
    if granularity == "element":
        return shape
    if granularity == "channel":
        return tuple(n if i in (rows, channel) else 1 for i, n in enumerate(shape))
    return tuple(1 if i == channel else n for i, n in enumerate(shape))


def on_first(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``fn`` to a tensor, or to the first entry of the tuple, list or mapping that a module returned."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping) and len(value) > 0:
        first = next(iter(value))
        kind: Any = type(value)
        filled = {**value, first: on_first(value[first], fn)}
        return kind(**filled) if all(isinstance(k, str) for k in filled) else kind(filled)
    if isinstance(value, (tuple, list)) and len(value) > 0:
        entries = [on_first(value[0], fn), *value[1:]]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    raise BatchError(
        f"Deep Augmentation needs a tensor, but the value at its site is a {type(value).__name__}: choose another site."
    )
