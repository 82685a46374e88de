"""The node at a site: which rows of a batch are augmented, whether their gradient is stopped, and what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from graphaug.augment.choices import check_choice, check_probability
from graphaug.augment.drawn import INSIDE, NOTHING_YET, Drawn, detached
from graphaug.augment.rows import BATCH, Rows
from graphaug.augment.shapes import finest
from graphaug.augment.structures import on_first
from graphaug.augment.transform import PLAIN, Context
from graphaug.augment.turns import Turns
from graphaug.errors import BatchError, InvalidOption, did_you_mean, several
from graphaug.torch_private import is_functorch_wrapper


class Augmentation(nn.Module):
    """A change of a random subset of the rows of a batch, in training mode; in eval mode the identity.

    A subclass says what the change is, in ``_augment`` for a whole batch and in ``change`` for augmented rows that a
    sparse step has apart. The subset lives in a non-persistent buffer: changing it recompiles no dropout.

    Args:
        subset: share of all rows that is augmented, in [0, 1].
        stop_grad: detach the augmented rows behind the change.
        sampling: ``"exact"`` augments ``round(subset * rows)`` rows (half to even), drawn uniformly
            without replacement; ``"bernoulli"`` augments each row with probability ``subset``.
        pairing: ``"any"`` row, or ``"one-sided"``: the first half of the rows only. ``subset`` stays a
            share of *all* rows, so one-sided augmentation reaches at most 0.5; bernoulli then draws
            each row of the first half with probability ``2 * subset``. ``"together"``: both views of a
            sample or neither, rows ``i`` and ``i + rows/2``; with ``rewrite(..., views=k)`` all k of them.
        place: where the rows, which are samples, lie in the value; by default along dimension 0.

    Raises:
        InvalidOption: a value outside its domain.
    """

    subset: Tensor

    def __init__(
        self,
        subset: float = 0.5,
        stop_grad: bool = False,
        sampling: str = "exact",
        pairing: str = "any",
        place: Rows = BATCH,
    ) -> None:
        super().__init__()
        self._spelled_subset = repr(check_probability("subset", subset))
        if not isinstance(stop_grad, bool):
            raise InvalidOption(f"stop_grad={stop_grad!r} is neither True nor False.")
        self.stop_grad = stop_grad
        self.sampling = check_choice("sampling", sampling)
        self.pairing = check_choice("pairing", pairing)
        self.place = place
        self.copies = 2  # the views of a sample, each a batch behind the other; `rewrite` knows of more
        Augmentation.check_subset(self, self._subset)
        self._drawn: tuple[Tensor, Tensor | None, Any] | str = NOTHING_YET
        self._given: Context = PLAIN
        self.turns: Turns | None = None
        self.number = 0
        # one entry, not none: Dynamo takes a float64 scalar on the CPU for a Python number, and starts its trace,
        # autograd's included, once more when it finds that it was none
        self.register_buffer("subset", torch.tensor([self._subset], dtype=torch.float64), persistent=False)

    # --- numbers ------------------------------------------------------------------------------

    @property
    def _subset(self) -> float:
        """The share of rows as a plain number.

        It is kept as text. Of a number that changes Dynamo makes a symbol, and of the two parts of a batch symbolic
        shapes: they take twice as long to compile, and what is compiled is for that one subset all the same.
        """
        return float(self._spelled_subset)

    def numbers(self) -> dict[str, float]:
        """What `set` can change, with its present values."""
        return {"subset": self._subset}

    def check(self, **numbers: float) -> None:
        """Raise ``InvalidOption`` if `set` would."""
        for name, value in numbers.items():
            if name != "subset":
                known = self.numbers()
                raise InvalidOption(
                    f"there is no number {name!r} to set here.{did_you_mean(name, known)} It has {', '.join(known)}."
                )
            self.check_subset(check_probability(name, value))

    def set(self, **numbers: float) -> None:
        """Change numbers in place; all are checked before one is changed.

        Raises:
            InvalidOption: an unknown name, or a value outside its domain.
        """
        self.check(**numbers)
        if "subset" in numbers:
            self._spelled_subset = repr(float(numbers["subset"]))
            self.subset.fill_(self._subset)

    def set_subset(self, subset: float) -> None:
        """Change the share of augmented rows in place; `set` says what is recompiled.

        Raises:
            InvalidOption: outside [0, 1], or above 0.5 with one-sided pairing.
        """
        Augmentation.set(self, subset=subset)

    def check_subset(self, subset: float) -> None:
        """Raise ``InvalidOption`` if that share of rows cannot be drawn from the first half."""
        if self.pairing == "one-sided" and subset > 0.5:
            raise InvalidOption(
                f"subset={subset} with pairing='one-sided': only the first half of the rows can be drawn, "
                "so give a subset of at most 0.5."
            )

    # --- the forward --------------------------------------------------------------------------

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
        raise NotImplementedError

    def change(self, gone: Tensor, rows: Tensor, index: Tensor | None, whole: Callable[[], Tensor]) -> Tensor:
        """The augmented rows, changed and detached, where a sparse step has them apart.

        Args:
            gone: the augmented rows as they lie in a value, without gradient.
            rows: which rows of the batch they are: a mask of shape (rows,).
            index: the same as indices, in the order of ``gone``; None: it is all of them.
            whole: gives the whole batch, for what is measured on it.
        """
        raise NotImplementedError

    # --- what was drawn, and what is given ------------------------------------------------------

    def __dir__(self) -> list[str]:
        """The names of its attributes; torch.jit reads whatever is listed, and ``drawn`` may not be there yet."""
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [name for name in names if name != "drawn" or not isinstance(self._drawn, str)]

    @property
    def drawn(self) -> Drawn:
        """What the last forward in training mode drew.

        Raises:
            BatchError: there was none, or it was one inside of a transform of torch.func.
        """
        if isinstance(self._drawn, str):
            raise BatchError(self._drawn)
        return Drawn(*self._drawn)

    def remember(self, rows: Tensor, index: Tensor | None = None, draws: Any = None) -> None:
        """Keep what was drawn; an attribute that no forward reads, so that it compiles and guards nothing."""
        if torch.compiler.is_exporting():
            return
        inside = not torch.compiler.is_compiling() and is_functorch_wrapper(rows)
        self._drawn = INSIDE if inside else (rows, index, detached(draws))

    def forget(self) -> None:
        """As if nothing had been drawn."""
        self._drawn = NOTHING_YET

    @property
    def context(self) -> Context:
        """What is known around the rows: what `give` handed in."""
        return self._given

    def give(self, context: Context) -> None:
        """Hand in what is known around the rows of the forwards to come: labels, masks, another activation."""
        self._given = context

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what was drawn is forgotten with it, as nothing is drawn in eval mode."""
        if not mode:
            self.forget()
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": NOTHING_YET, "_given": PLAIN}

    # --- rows ---------------------------------------------------------------------------------

    def check_batch(self, h: Tensor) -> None:
        """Raise ``BatchError`` unless ``h`` is a batch that this augmentation is defined for."""
        self.check_value(h)
        self.place.check(h.shape)
        self.check_rows(self.place.count(h.shape))

    def check_value(self, h: Tensor) -> None:
        """Raise ``BatchError`` unless ``h`` holds activations: a floating-point tensor of rank 2 or more."""
        if h.dim() < 2 or h.dim() <= self.place.dim or not h.is_floating_point():
            raise BatchError(
                f"Deep Augmentation needs a floating-point batch (rows, features, …), "
                f"not a {h.dtype} tensor of shape {tuple(h.shape)}: choose another site."
            )

    def check_rows(self, rows: int) -> None:
        """Raise ``BatchError`` for no rows, or a number of them that cannot be views where views are paired."""
        if rows < 1:
            raise BatchError(
                "Deep Augmentation draws a subset of the rows of a batch, and this one has 0 rows."
            )
        if self.pairing == "one-sided" and rows % 2 and rows > 1:
            raise BatchError(f"pairing='one-sided' needs two views stacked as [x1; x2]: {rows} rows is odd.")
        if rows % self._together(rows):
            raise BatchError(
                f"pairing='together' needs {self.copies} views stacked behind each other, as [x1; x2]: {rows} rows are "
                f"no multiple of {self.copies}."
            )

    def _together(self, rows: int) -> int:
        """How many rows are drawn as one; a batch of a single row has no other view of it."""
        return self.copies if self.pairing == "together" and rows > 1 else 1

    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        """Draw the augmented rows: a boolean mask of shape (rows,); none, if it is another site's turn."""
        together = self._together(rows)
        if together > 1:
            rows //= together
        eligible = rows // 2 if self.pairing == "one-sided" else rows
        if self.sampling == "exact":
            # the ranks of a uniform permutation below k mark a uniform k-subset; k stays a tensor, so
            # that neither a new subset nor a new batch size is a new program
            drawn = torch.randperm(eligible, device=device) < torch.round(self.subset * rows)
        else:
            share = self.subset * (rows / max(eligible, 1))
            drawn = torch.rand(eligible, device=device) < share
        if eligible != rows:
            drawn = torch.cat([drawn, drawn.new_zeros(rows - eligible)])
        if together > 1:
            drawn = drawn.repeat(together)
        return drawn if self.turns is None else drawn & self.turns.is_on(self.number, device)

    def stopped_rows(self, rows: int) -> int:
        """How many of ``rows`` rows an exact draw augments, as a plain number.

        Raises:
            BatchError: no rows, or not the views of as many samples where views are paired.
        """
        self.check_rows(rows)
        return self._exactly(rows)

    def count_rows(self, rows: int) -> int | None:
        """How many of ``rows`` rows are augmented, or None if that is itself random."""
        return self._exactly(rows) if self.sampling == "exact" else None

    def largest_without(self, rows: int) -> float:
        """The largest subset at which none of ``rows`` rows is ever augmented."""
        return 0.5 / (rows // self._together(rows)) if self.sampling == "exact" else 0.0

    def _exactly(self, rows: int) -> int:
        samples = rows // (together := self._together(rows))
        eligible = samples // 2 if self.pairing == "one-sided" else samples
        return min(round(self._subset * samples), eligible) * together

    def _exact_numbers(self) -> dict[str, float]:
        """The buffers of this module that hold numbers, with what they have to hold."""
        return {"subset": self._subset}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # .half() and .to(bfloat16) round every floating buffer, to_empty() forgets it
        for name, value in self._exact_numbers().items():
            device = getattr(self, name).device
            setattr(self, name, torch.tensor([value], dtype=finest(device), device=device))
        return self


def none_augmented(augmentation: Augmentation, rows: int) -> str:
    """That an exact draw augments none of so many rows, in words; or an empty string."""
    if augmentation.count_rows(rows) != 0:
        return ""
    subset = augmentation._subset
    return f"of {several(rows, 'row')} none is augmented: subset={subset:g}{' rounds to 0' if subset else ''}"
