"""Samples that an input tells: which nodes are a graph's, as torch_geometric's ``batch`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.augment.rows import BATCH, Members, Owner, Rows
from graphaug.capture.state import evaluating, seed, unchanged, undrawn
from graphaug.capture.values import value_of
from graphaug.errors import InvalidOption, did_you_mean
from graphaug.proof.independence.samples import Samples
from graphaug.proof.part import Run, cut_input, inputs_of


def told_samples(
    model: nn.Module,
    graph: fx.Graph,
    cuts: Sequence[fx.Node],
    examples: Mapping[str, Any],
    constants: Mapping[str, Any],
    name: str,
) -> Samples:
    """The samples of an example where an input holds the sample of every entry of dimension 0.

    At a cut with as many entries as that input every entry is of its sample; with as many as there are samples, each is
    one. That the entries are their sample's own is tried on the example: sample 0 is moved, and no other may change.

    Args:
        model, graph, cuts, examples, constants: as for `graphaug.proof.independence.samples.find_samples`.
        name: of the input, an integer tensor of one dimension.

    Raises:
        InvalidOption: there is no such input, it tells nothing of a cut's value, or a trial contradicts it.
    """
    index, count = told_index(graph, examples, name)
    places = [_place(cut, index, count, name) for cut in cuts]
    against = _together(model, graph, cuts, places, inputs_of(graph, examples), constants, index)
    if against is not None:
        raise InvalidOption(
            f"rows={name!r} does not fit the example: at '{against.meta.get('site') or against.name}' other samples "
            "change when sample 0 of the inputs does."
        )
    note = (
        f"rows: told by the input '{name}'; that no sample sees another was tried on the example, not proved"
    )
    return Samples(count, {}, tuple(places), (), note)


def told_index(graph: fx.Graph, examples: Mapping[str, Any], name: str) -> tuple[Tensor, int]:
    """The input that tells the sample of every entry, and how many samples there are.

    Raises:
        InvalidOption: there is no such input, or it tells nothing.
    """
    inputs = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    if name not in inputs:
        raise InvalidOption(
            f"rows={name!r} is no input of the model.{did_you_mean(name, inputs)} It has: {', '.join(inputs)}."
        )
    index = examples.get(name)
    whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype is not torch.bool
    if not isinstance(index, Tensor) or not whole or index.dim() != 1 or index.is_meta:
        raise InvalidOption(
            f"rows={name!r} has to be a tensor of whole numbers in example_inputs, of one dimension: the sample of "
            "each entry."
        )
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2 or count == len(index):
        raise InvalidOption(
            f"rows={name!r} tells of {count} samples with {len(index)} entries in example_inputs: give two samples or "
            "more, and more entries than samples."
        )
    return index, count


def told_place(value: Any, index: Tensor, count: int, name: str) -> Rows | None:
    """Where the samples lie in a value: as many entries as the input has, or as many as samples; else None."""
    shape = tuple(getattr(value, "shape", ()))
    if shape and shape[0] == len(index):
        return Members(0, owner=Owner(name))
    return BATCH if shape and shape[0] == count else None


def _place(cut: fx.Node, index: Tensor, count: int, name: str) -> Rows:
    if (place := told_place(value_of(cut), index, count, name)) is not None:
        return place
    shape = tuple(getattr(value_of(cut), "shape", ()))
    raise InvalidOption(
        f"rows={name!r} tells of {count} samples with {len(index)} entries, and the value at "
        f"'{cut.meta.get('site') or cut.name}' is {'×'.join(map(str, shape)) or 'no tensor'}: choose a site with "
        "one of these along dimension 0."
    )


def _together(
    model: nn.Module,
    graph: fx.Graph,
    cuts: Sequence[fx.Node],
    places: Sequence[Rows],
    examples: Mapping[str, Any],
    constants: Mapping[str, Any],
    index: Tensor,
) -> fx.Node | None:
    """The first cut at which another sample changes when sample 0 of the inputs does, in eval mode."""
    own = index == 0
    run = Run.up_to(model, graph, [cut_input(cut) for cut in cuts], constants)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.clone()
        if value is not index and value.dim() > 0 and len(value) == len(index):
            if value.is_floating_point():
                value[own] += torch.randn(value[own].shape, generator=torch.Generator().manual_seed(0)).to(
                    value
                )
            elif not torch.equal(value, index):
                value[own] = value[own].flip(0)
        return value

    found = []
    with unchanged(model), evaluating(model), undrawn(), torch.no_grad():
        for change in (lambda v: v.clone() if isinstance(v, Tensor) else v, moved):
            seed(0)
            found.append(run(torch.utils._pytree.tree_map(change, dict(examples))))
    still, with_moved = found
    for cut, place, a, b in zip(cuts, places, still, with_moved, strict=True):
        others = ~own if isinstance(place, Members) else torch.arange(len(a), device=a.device) > 0
        a, b = a[others].nan_to_num(), b[others].nan_to_num()
        if a.numel() and not float((a - b).abs().max()) <= 1e-5 * max(float(a.abs().max()), 1e-6):
            return cut
    return None
