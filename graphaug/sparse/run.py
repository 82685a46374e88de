"""Running a split graph: stopped rows without grad, the others with it, and all back in their places."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn.utils import parametrize

from graphaug.augment.rows import BATCH, Rows
from graphaug.augment.site import Augmentation
from graphaug.capture.recording.relied.objects import has_labels
from graphaug.capture.state import unchanged, undrawn
from graphaug.capture.values import assume
from graphaug.errors import AssumptionViolated, GraphaugError
from graphaug.sparse.entries import Entry, found_in
from graphaug.sparse.kept.lost import is_still_proved, note_changes
from graphaug.sparse.kept.prefix import Kept
from graphaug.sparse.rows import like, take
from graphaug.sparse.within import Options, within
from graphaug.surgery.called.plain import where_counted

Merge = Literal["same", "sum"]
_GRAPHS = ("shared", "prefix", "suffix", "two_streams")


@dataclass(frozen=True)
class Split:
    """A graph split at its cut.

    Attributes:
        shared: inputs -> what carries no gradient, on all rows; None if nothing is needed.
        prefix: inputs and shared values -> the value at the cut, then the crossing ones.
        suffix: inputs, shared values, the augmented value and the crossing ones -> the output.
        inputs: what the prefix takes of the graph's inputs, in its order.
        rows: for each input of the prefix (inputs, then shared values), its dimension of rows or None.
        single: for each that has none, how many dimensions it had, and which of them were 1.
        crossing: how the crossing values of the two runs make that of all rows.
        augmentation: name of the augmentation's module.
        regions: the autocast regions that the cut lies in; see `within`.
        batch: what of the inputs tells the number of rows, and the dimension of it.
        place: where the rows lie in the value at the cut.
        views: how many views every row becomes at the cut; all of a row are stopped, or none.
        least: so many rows every part must have.
        kept: the modules of the prefix, as they were when it was split; the step is dense once they have changed.
        by_layout: the prefix asks how tensors lie in memory, and rows taken of some answer otherwise.
        by_class: it may ask for the class of a tensor, which rows taken of it have not.
        two_streams: the prefix on both sets of rows at once, where they share batch statistics; see two_streams.
    """

    shared: fx.Graph | None
    prefix: fx.Graph
    suffix: fx.Graph
    inputs: tuple[Entry, ...]
    rows: tuple[int | None, ...]
    single: tuple[tuple[int, tuple[int, ...]] | None, ...]
    crossing: tuple[Any, ...]
    augmentation: str
    batch: tuple[Entry, int]
    place: Rows = BATCH
    views: int = 1
    regions: tuple[Options, ...] = ()
    least: int = 1
    kept: Kept | None = None
    by_layout: bool = False
    by_class: bool = False
    two_streams: fx.Graph | None = None

    def graphs(self) -> dict[str, fx.Graph]:
        """The graphs by name; those that are not needed are left out."""
        found = {name: getattr(self, name) for name in _GRAPHS}
        return {name: graph for name, graph in found.items() if graph is not None}

    def with_graphs(self, change: Callable[[fx.Graph], Any]) -> Split:
        """The same split with every graph changed."""
        changed: dict[str, Any] = {name: change(graph) for name, graph in self.graphs().items()}
        return dataclasses.replace(self, **changed)

    def taken(self, values: dict[str, Any]) -> list[Any]:
        """What the prefix takes of the inputs of a call."""
        return [found_in(values, entry) for entry in self.inputs]

    def counted(self, values: dict[str, Any]) -> tuple[Tensor, int]:
        """The input of a call that tells the number of rows, and the number."""
        entry, dimension = self.batch
        whole: Tensor = found_in(values, entry)
        return whole, whole.shape[dimension]

    def viewed(self, value: Tensor) -> Tensor:
        """The value at the cut with its rows as many times as there are views."""
        return value if self.views == 1 else self.place.repeated(value, self.views)

    def of_one_view(self, mask: Tensor) -> Tensor:
        """What was drawn for every view, for one of them: rows are drawn in all views or in none."""
        return mask if self.views == 1 else mask[: len(mask) // self.views]

    def look_again(self, parts: Any) -> None:
        """Let the plan say what the next step will do; a warning is for the step itself."""
        if self.kept is not None:
            note_changes(parts)

    def run(self, owner: Any, values: dict[str, Any]) -> Any:
        """One training forward; see `sparse_forward`.

        Raises:
            AssumptionViolated: the call is not what the graph was captured for, also where a part of it fails by that
                before it comes to the check.
        """
        if torch.compiler.is_compiling():
            return sparse_forward(owner, self, values)
        try:
            return sparse_forward(owner, self, values)
        except (GraphaugError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            _check_assumptions(owner, values, error)
            raise


def sparse_forward(owner: Any, plan: Split, values: dict[str, Any]) -> Any:
    """One training forward of a split model.

    Args:
        owner: the rewritten model, whose class has the generated functions of the three graphs.
        plan: how the graph was split.
        values: the inputs by name.

    Returns:
        The output of the model, as the unsplit graph gives it.
    """
    augmentation: Augmentation = getattr(owner, plan.augmentation)
    if not (augmentation.training and augmentation.stop_grad):  # switched off by hand: nothing is stopped
        return owner._forward_training(**values)
    if plan.kept is not None and not is_still_proved(owner._parts):
        return owner._forward_training(**values)
    shared: tuple[Any, ...] = ()
    if plan.shared is not None:
        with torch.no_grad():
            shared = owner._forward_shared(**values)
        _forget_casts()
    taken = [*plan.taken(values), *shared]
    whole, rows = plan.counted(values)
    views = rows * plan.views
    stopped = augmentation.stopped_rows(views) // plan.views
    if stopped == rows and augmentation._subset < 1:
        # of so small a batch, by rounding alone: a parameter without any gradient is no surprise at subset=1 only
        return owner._forward_training(**values)
    if 0 < stopped < plan.least or 0 < rows - stopped < plan.least:  # what is proved is not of so few rows
        return owner._forward_training(**values)
    if any(count not in (1, rows) for count in _counts(taken, plan.rows)):  # of another number of samples
        return owner._forward_training(**values)
    if any(
        map(_has_grown, taken, plan.single)
    ):  # of one row for all in the example, and now perhaps one for each
        return owner._forward_training(**values)
    if not all(_is_told_by_rows(value, plan) for value in taken):
        return owner._forward_training(**values)

    if stopped == 0:
        h, *crossing = owner._forward_prefix(*taken)
        plan.place.check(h.shape, rows)

        def changed() -> Tensor:
            none = torch.zeros(views, dtype=torch.bool, device=h.device)
            augmentation.remember(none, torch.argsort(none)[:0])
            return plan.viewed(h)
    elif stopped == rows:
        with torch.no_grad():
            h, *crossing = owner._forward_prefix(*taken)
        plan.place.check(h.shape, rows)
        _forget_casts()

        def changed() -> Tensor:
            augmentation.check_value(h)
            # nothing to choose; the generator moves on as ever
            mask = augmentation.draw_rows(views, h.device)
            stopped_h = plan.viewed(h.detach())  # a forward may switch gradients on for itself
            return augmentation.change(stopped_h, mask, None, lambda: stopped_h)
    else:
        mask = augmentation.draw_rows(views, whole.device)
        # stopped rows first, each part in the order of the batch
        order = torch.argsort(plan.of_one_view(mask).to(torch.uint8), descending=True, stable=True)
        first, rest = order[:stopped], order[stopped:]
        kept, gone = (take(taken, plan.rows, part, rows) for part in (rest, first))
        (h_kept, *crossing), (h_gone, *others) = _both_parts(owner, plan, kept, gone)
        plan.place.check(h_kept.shape, rows - stopped)
        plan.place.check(h_gone.shape, stopped)
        crossing = [merge(k, a, b) for k, a, b in zip(plan.crossing, crossing, others, strict=True)]

        def changed() -> Tensor:
            augmentation.check_value(h_kept)
            of_kept, of_gone = plan.viewed(h_kept), plan.viewed(h_gone.detach())
            chosen, others = (_of_views(part, rows, plan.views) for part in (first, rest))
            back = torch.argsort(order if plan.views == 1 else torch.cat([chosen, others]))

            def together(gone: Tensor) -> Tensor:
                return like(plan.place.take(plan.place.join(gone, of_kept), back), of_kept)

            # on which all is measured that a transform measures: its result is stopped as a whole
            return together(augmentation.change(of_gone, mask, chosen, lambda: together(of_gone).detach()))

    value = within(plan.regions, crossing, changed)
    return owner._forward_suffix(*values.values(), *shared, value, *crossing)


def _check_assumptions(owner: Any, values: dict[str, Any], error: Exception) -> None:
    """Look for a reason of an error: the whole graph checks each assumption where the forward came to it."""
    if not any(node.target is assume for node in owner._parts.training_graph.nodes):
        return
    with undrawn(), unchanged(owner.original), torch.no_grad():
        try:
            owner._forward_training(**values)
        except AssumptionViolated as violated:
            raise violated from error
        except Exception:
            return


def _both_parts(owner: Any, plan: Split, kept: list[Any], gone: list[Any]) -> tuple[Any, Any]:
    """The prefix on the rows that keep their gradient, and without grad on those that are stopped."""
    if plan.two_streams is not None:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # comes back even if the graph raises
            both: tuple[Any, Any] = owner._forward_two_streams(*kept, *gone)
    else:
        # with grad first: under autocast a weight cast without grad would be cached for both
        with_grad = owner._forward_prefix(*kept)
        with torch.no_grad():
            both = with_grad, owner._forward_prefix(*gone)
    _forget_casts()  # of weights that only stopped rows came to
    return both


def _of_views(index: Tensor, rows: int, views: int) -> Tensor:
    """All views of the rows at ``index``, where each view is a batch of ``rows`` behind the other."""
    return index if views == 1 else torch.cat([index + i * rows for i in range(views)])


def _forget_casts() -> None:
    """Where autocast keeps a weight that it cast without grad, it would use it where the weight needs one.

    So would ``parametrize.cached()`` a weight that it made.
    """
    if torch.compiler.is_compiling():  # compiled code has no such cache
        return
    torch.clear_autocast_cache()
    for key in [k for k, v in parametrize._cache.items() if v is not None and not v.requires_grad]:
        del parametrize._cache[key]


def _counts(values: list[Any], dimensions: tuple[int | None, ...]) -> list[int]:
    """How many rows every value has that has rows."""
    pairs = zip(values, dimensions, strict=True)
    return [v.shape[d] for v, d in pairs if d is not None and isinstance(v, Tensor)]


def _has_grown(value: Any, single: tuple[int, tuple[int, ...]] | None) -> bool:
    """Whether a value that was the same for all rows has entries where it had one."""
    if single is None or not isinstance(value, Tensor):
        return False
    dimensions, ones = single
    return value.dim() != dimensions or any(value.shape[d] != 1 for d in ones)


def _is_told_by_rows(value: Any, plan: Split) -> bool:
    """Whether rows taken of a value answer as it does, of what may be asked beside its numbers and sizes."""
    if not isinstance(value, Tensor):
        return True
    of_a_class = plan.by_class and type(value) is not Tensor
    if of_a_class or (not torch.compiler.is_compiling() and has_labels(value)):
        return False
    channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return not plan.by_layout or value.is_contiguous() or channels_last


def merge(kind: Any, first: Any, second: Any) -> Any:
    """Make a plain value of all rows from those of two parts; see `Batch.merge_of`."""
    return where_counted(kind, "sum", operator.add, first, second)
