"""Deep views: the prefix runs once, at the cut every row becomes several, and the suffix runs on all of them."""

from __future__ import annotations

from torch import Tensor, fx, nn

from graphaug.capture.dataflow import behind
from graphaug.capture.values import value_of
from graphaug.errors import InvalidOption, SparseBackwardError
from graphaug.sparse.batch import Batch
from graphaug.sparse.choose import Choice, Surgery, flop_share, two_sizes
from graphaug.sparse.crossing import Entering, Known, copied, entering
from graphaug.sparse.prefix import prefix_modules
from graphaug.surgery.called.views import multiplied, repeated


def with_views(surgery: Surgery, times: int) -> fx.Graph:
    """A training graph whose suffix runs on ``times`` as many rows: ``[h; …; h]`` enters the augmentation.

    What the suffix takes from elsewhere (masks, sizes, inputs) is repeated with its rows; what holds nothing of any
    row (parameters, position tables) stays as it is.

    Args:
        surgery: the rewrite, of one site; its graph is left as it is.
        times: how many views.

    Raises:
        InvalidOption: there are several sites, or a value passes around the cut of which it cannot be told how it is
            repeated.
    """
    site = surgery.requests[0].target
    try:
        if len(surgery.requests) > 1:
            raise SparseBackwardError(
                f"there are {len(surgery.requests)} sites, and rows become views at one"
            )
        if not isinstance(value_of(surgery.cuts[0]), Tensor):
            raise SparseBackwardError("the value at the cut is no single tensor")
        return _viewed(surgery, times, two_sizes(surgery))
    except SparseBackwardError as error:
        raise InvalidOption(
            f"views={times} is not possible at '{site}': {error}. Choose another site."
        ) from error


def view_choice(backward: str, surgery: Surgery, times: int) -> Choice:
    """The backward of deep views, whole, and how short a step may get.

    Raises:
        SparseBackwardError: a sparse one was asked for.
    """
    if backward in ("sparse", "proved"):
        raise SparseBackwardError(
            f"backward='{backward}' is not possible with views={times}: a row is stopped in one view and not in "
            "another. Use backward='auto'."
        )
    share = flop_share(surgery.graph, surgery.cuts[0])
    least = share / times + 1 - share
    return Choice("dense", f"the prefix runs once for {times} views; floor of the step {least:.2f}")


def view_notes(surgery: Surgery, times: int) -> list[str]:
    """What views share that copies of the input would not."""
    notes = []
    proof = surgery.samples.proofs[0] if surgery.samples.proofs else None
    if proof is not None and proof.statistics:
        notes.append(
            f"views: batch statistics before the cut are those of the rows that come in, not of {times} times as many"
        )
    drops = [
        path
        for path, module in prefix_modules(surgery.graph, surgery.cuts[0], surgery.structure.model)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    if drops:
        notes.append(
            f"views: the {times} views of a row share the dropout before the cut, as of '{drops[0]}'"
        )
    return notes


def _viewed(surgery: Surgery, times: int, batch: Batch) -> fx.Graph:
    """The graph of `with_views`, of its values at two batch sizes."""
    place, samples, structure = surgery.samples.places[0], surgery.samples, surgery.structure
    graph, mapping = copied(surgery.graph)
    cut, back = mapping[surgery.cuts[0]], {new: old for old, new in mapping.items()}
    dim = min(samples.dims.values(), default=0)
    known = Known(batch, back, structure.model, structure.signature.examples, surgery.captured.constants, dim)
    for value in entering(graph, behind(cut) - {cut}, known, "passes around the cut", {cut}):
        _repeat(graph, value, times)
    with graph.inserting_before(cut):
        once = graph.call_function(repeated, (cut.args[0], place.dim, place.outer, times))
    cut.replace_input_with(cut.args[0], once)  # type: ignore[arg-type]
    once.meta["value"] = value_of(cut)
    graph.lint()
    return graph


def _repeat(graph: fx.Graph, value: Entering, times: int) -> None:
    """Let the suffix use a value with its rows repeated, or a size of all views."""
    made: fx.Node | None = None
    for user in value.users:
        if made is None or not value.shared:
            with graph.inserting_before(user):
                if value.place is None:
                    made = graph.call_function(multiplied, (value.node, value.kinds, times))
                else:
                    made = graph.call_function(
                        repeated, (value.node, value.place.dim, value.place.outer, times)
                    )
            made.meta["value"] = value_of(value.node)
        user.replace_input_with(value.node, made)
