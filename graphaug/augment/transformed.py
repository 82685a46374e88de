"""Any transform at a site: the node that takes out the augmented rows, and puts them back changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from graphaug.augment.rows import BATCH, Rows
from graphaug.augment.site import Augmentation
from graphaug.augment.structures import on_first
from graphaug.augment.transform import PLAIN, Context, Transform
from graphaug.errors import BatchError, InvalidOption


class Transformed(Augmentation):
    """A transform ``T`` on a random subset of the rows of a batch: ``out = where(rows, stop(T(h)), h)``.

    Where rows do not meet (``T.needs``) all rows are transformed and the augmented ones taken, so that nothing is
    recompiled whatever the subset. Where they do, the augmented rows go through it and no others, and a new subset is
    a new program; what is measured on the batch is measured on all its rows.

    Args:
        transform: what is done to the augmented rows.
        subset, stop_grad, sampling, pairing, place: as of `Augmentation`.

    Raises:
        InvalidOption: rows meet and their number would be random, or tokens change and not all rows are augmented.
    """

    transform: Transform

    def __init__(
        self,
        transform: Transform,
        subset: float = 0.5,
        stop_grad: bool = False,
        sampling: str = "exact",
        pairing: str = "any",
        place: Rows = BATCH,
    ) -> None:
        super().__init__(subset, stop_grad, sampling, pairing, place)
        self.transform = transform
        if transform.needs.rows_meet and sampling != "exact":
            raise InvalidOption(
                f"sampling='bernoulli' augments a random number of rows, and {type(transform).__name__} needs to know "
                "how many there are: use sampling='exact'."
            )
        self.check_subset(self._subset)

    # --- numbers ------------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        """The transform's numbers, and the subset."""
        return {**self.transform.numbers(), **super().numbers()}

    def check(self, **numbers: float) -> None:
        """Raise ``InvalidOption`` if `set` would."""
        own = {name: value for name, value in numbers.items() if name in self.transform.numbers()}
        self.transform.check(**own)
        super().check(**{name: value for name, value in numbers.items() if name not in own})

    def set(self, **numbers: float) -> None:
        """Change the transform's numbers or the subset in place.

        Raises:
            InvalidOption: an unknown name, or a value outside its domain.
        """
        self.check(**numbers)
        own = {name: value for name, value in numbers.items() if name in self.transform.numbers()}
        self.transform.set(**own)
        super().set(**{name: value for name, value in numbers.items() if name not in own})

    def check_subset(self, subset: float) -> None:
        """Raise ``InvalidOption`` if that share of rows cannot be augmented."""
        super().check_subset(subset)
        if self.transform.needs.new_tokens and subset != 1:
            raise InvalidOption(
                f"subset={subset} of the rows would have another number of tokens than the others: give subset=1.0."
            )

    # --- the forward --------------------------------------------------------------------------

    def forward(self, h: Any, tell: bool = False) -> Any:
        """Augment a batch, as `Augmentation.forward`; ``tell``: with the tokens that each row keeps beside it, (n, k).

        In eval mode all are kept, and None is beside it.
        """
        if not tell:
            return super().forward(h)
        if isinstance(h, fx.Proxy):  # another tracing: this module is one node in it
            tracer: Any = h.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (h, True), {})
        if not self.training:
            return h, None
        drawn: list[Any] = []
        out = on_first(h, lambda value: self._augment(value, drawn))
        return out, self.transform.kept(drawn[0])

    def _augment(self, h: Tensor, drawn: list[Any] | None = None) -> Tensor:
        self.check_batch(h)
        count = self.place.count(h.shape)
        rows = self.draw_rows(count, h.device)
        value = self.place.samples(h.detach() if self.stop_grad else h)
        # the number is asked for where it is needed only: compiled code is for that one number
        if self.transform.needs.apart or self.stopped_rows(count) == count:
            out = self.place.restored(self.transformed(value, rows, None, lambda: value, drawn), h)
            # of all rows too: what is stopped has a gradient of zeros below, as in every other step
            return out if self.transform.needs.new_tokens else torch.where(self.place.over(rows, h), out, h)
        some = self.stopped_rows(count)
        if some == 0:
            self.remember(rows, torch.argsort(rows)[:0])
            return h
        index = chosen(rows, some)
        out = self.transformed(value.index_select(0, index), rows, index, lambda: value)
        mixed = self.place.restored(self.place.samples(h).index_copy(0, index, out), h)
        return mixed if self.turns is None else torch.where(self.place.over(rows, h), mixed, h)

    def change(self, gone: Tensor, rows: Tensor, index: Tensor | None, whole: Callable[[], Tensor]) -> Tensor:
        """Transform augmented rows that a sparse step has apart."""
        out = self.transformed(self.place.samples(gone), rows, index, lambda: self.place.samples(whole()))
        return self.place.restored(out, gone).detach()

    def transformed(
        self,
        some: Tensor,
        rows: Tensor,
        index: Tensor | None,
        whole: Callable[[], Tensor],
        drawn: list[Any] | None = None,
    ) -> Tensor:
        """Draw for rows of shape (n, …) and change them; what was drawn is remembered, and added to ``drawn``."""
        draws = self.transform.draw(some, self._context(index, rows.shape[0], whole))
        if drawn is not None:
            drawn.append(draws)
        self.remember(rows, index, self.transform.told(draws))
        out: Any = self.transform(some, draws)
        kept = isinstance(out, Tensor) and out.dtype == some.dtype
        if not kept or (out.shape != some.shape and not self.transform.needs.new_tokens):
            made = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BatchError(
                f"{type(self.transform).__name__} made {made} of rows {some.dtype} {tuple(some.shape)}: "
                "keep shape and type."
            )
        changed: Tensor = out.detach() if self.stop_grad else out
        return changed

    def _context(self, index: Tensor | None, count: int, whole: Callable[[], Tensor]) -> Context:
        """What is known around the chosen rows, of what was given for all of the batch."""
        given, measured = self._given, self.transform.needs.statistics
        entries: dict[str, Any] = {
            name: None if entry is None else _of_rows(name, entry, index, count)
            for name, entry in (("labels", given.labels), ("mask", given.mask), ("source", given.source))
        }
        if given.generator is None and not measured and not any(e is not None for e in entries.values()):
            return PLAIN
        return Context(generator=given.generator, batch=whole() if measured else None, **entries)

    def halving(self) -> dict[str, Any]:
        """Methods to put in the place of its own, so that it halves its rows and draws nothing for it."""

        def halved(some: Tensor, *_: Any) -> Tensor:
            return some.detach() * 0.5 if self.stop_grad else some * 0.5

        return {"transformed": halved}

    def extra_repr(self) -> str:
        """Show the options; the transform is a child, and shown below them."""
        return (
            f"subset={self._subset:g}, stop_grad={self.stop_grad}, sampling={self.sampling!r}, "
            f"pairing={self.pairing!r}"
        )


def chosen(rows: Tensor, count: int) -> Tensor:
    """The indices of the ``count`` rows that a mask is true for, in the order of the batch."""
    return torch.argsort(rows.to(torch.uint8), descending=True, stable=True)[:count]


def _of_rows(name: str, entry: Tensor, index: Tensor | None, count: int) -> Tensor:
    """What was given for a batch, for some of its rows; one row of it is for all."""
    if entry.shape[0] == 1 and name == "source":
        return entry
    if entry.shape[0] != count:
        times, rest = divmod(count, max(entry.shape[0], 1))
        views = f" Of {times} views give torch.cat([{name}] * {times})." if times > 1 and not rest else ""
        raise BatchError(f"{name} of {entry.shape[0]} rows were given for a batch of {count}.{views}")
    return entry if index is None else entry.index_select(0, index)
