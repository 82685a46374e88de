"""Deep views: the prefix runs once, at the cut every row becomes several, and the suffix runs on all of them."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from torch import fx, nn

from graphaug.capture.dataflow import behind
from graphaug.capture.values import UNKNOWN, value_of
from graphaug.errors import InvalidOption, SparseBackwardError
from graphaug.proof.prefix import prefix_modules
from graphaug.sparse.batch import Batch, Viewed, check_single
from graphaug.sparse.choose import Choice, Surgery, choose, two_sizes
from graphaug.sparse.crossing import Entering, Known, copied, entering, made_of_sizes
from graphaug.sparse.saving import floor, flop_share
from graphaug.sparse.tuples import together
from graphaug.surgery.called.views import multiplied, repeated


def with_views(surgery: Surgery, times: int) -> Viewed:
    """A training graph whose suffix runs on ``times`` as many rows: ``[h; …; h]`` enters the augmentation.

    What the suffix takes from elsewhere (masks, sizes, inputs) is repeated with its rows; what it makes of sizes
    (noise, targets) is made for all views; what holds nothing of any row (parameters, position tables) stays as it is.

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
        check_single(surgery.cuts[0])
        return _viewed(surgery, times, two_sizes(surgery))
    except SparseBackwardError as error:
        raise InvalidOption(
            f"views={times} is not possible at '{site}': {error}. Choose another site."
        ) from error


def view_choice(backward: str, surgery: Surgery, viewed: Viewed) -> Choice:
    """The backward of deep views, and how short a step may get beside one that runs all copies.

    Raises:
        SparseBackwardError: a sparse one was asked for, and it would not be exact.
    """
    choice = choose(backward, surgery, viewed)
    once = f"the prefix runs once for {viewed.times} views"
    if choice.kind == "dense":
        least = floor(0, flop_share(surgery.graph, surgery.cuts[0]), viewed.times)
        once += f"; floor of the step {least:.2f}"
    why = f"; {choice.reason}" if surgery.requests[0].stop_grad else ""  # without, there is nothing to skip
    return dataclasses.replace(choice, reason=once + why)


def view_notes(surgery: Surgery, viewed: Viewed) -> list[str]:
    """What views share that copies of the input would not."""
    notes, times = [], viewed.times
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
    modules = dict(surgery.structure.model.named_modules())
    drawn = dict.fromkeys(
        (draw.op, draw.module if draw.module in modules else "", draw.line)
        for draw in (*(proof.draws if proof is not None else ()), *viewed.draws)
        if draw.module not in drops
    )
    for op, module, line in drawn:
        where = f" in '{module}'" if module else ""
        notes.append(f"views: the {times} views of a row share what '{op}' draws{where}{line}")
    return notes


def _viewed(surgery: Surgery, times: int, batch: Batch) -> Viewed:
    """The graph of `with_views`, of its values at two batch sizes."""
    place, samples, structure = surgery.samples.places[0], surgery.samples, surgery.structure
    graph, mapping = copied(surgery.graph)
    cut, back = mapping[surgery.cuts[0]], {new: old for old, new in mapping.items()}
    dim = min(samples.dims.values(), default=0)
    known = Known(batch, back, structure.model, structure.signature.examples, surgery.captured.constants, dim)
    inside = behind(cut) - {cut}
    inside |= made_of_sizes(graph, cut, inside)
    values = entering(graph, inside, known, "passes around the cut", {cut})
    for value in values:
        _repeat(graph, value, times)
    with graph.inserting_before(cut):
        once = graph.call_function(repeated, (cut.args[0], place.dim, place.outer, times))
    cut.replace_input_with(cut.args[0], once)  # type: ignore[arg-type]
    once.meta["value"] = value_of(cut)
    graph.lint()
    draws = tuple(dict.fromkeys(draw for value in values for draw in value.draws))
    return Viewed(graph, cut, Batch(graph, batch.sizes, _others(graph, batch, back)), times, draws)


def _others(graph: fx.Graph, batch: Batch, back: dict[fx.Node, fx.Node]) -> dict[fx.Node, Any]:
    """The values of a viewed graph's nodes at the other batch size; of what is repeated, as it was before."""
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in back:
            found[node] = batch.other.get(back[node], UNKNOWN)
        elif node.target in (repeated, multiplied):
            found[node] = found[node.args[0]]
        elif node.target is operator.getitem:  # a tuple that was taken apart, and is joined again
            whole, i = node.args
            found[node] = UNKNOWN if found[whole] is UNKNOWN else found[whole][i]
        elif node.target is together:
            found[node] = tuple(found[entry] for entry in node.args)
    return found


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
