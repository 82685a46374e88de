"""Which dimension of the inputs holds the samples, and where they lie at every cut of a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphaug.augment.rows import BATCH, Rows, counted
from graphaug.capture.values import value_of
from graphaug.errors import InvalidOption
from graphaug.proof.independence.asker import Asker, apart
from graphaug.proof.independence.listed import check_listed
from graphaug.proof.independence.places import Meeting, Proof


@dataclass(frozen=True)
class Samples:
    """What is known of the samples of a model's example.

    Attributes:
        count: how many there are.
        dims: the dimension of samples of every example tensor that has one, by the tensor's ``id``.
        places: where they lie at every cut.
        proofs: what is proved of every cut; empty without examples.
        note: what a user should know of it, or an empty string.
    """

    count: int
    dims: Mapping[int, int]
    places: tuple[Rows, ...]
    proofs: tuple[Proof, ...]
    note: str = ""

    def by_input(self, examples: Mapping[str, Any]) -> dict[str, list[int | None]]:
        """The dimension of samples of every leaf of each input; None where it has none or none is known."""
        return {name: [self.dims.get(id(v)) for v in tree_leaves(value)] for name, value in examples.items()}


def find_samples(
    model: nn.Module,
    graph: fx.Graph,
    cuts: Sequence[fx.Node],
    examples: Mapping[str, Any],
    constants: Mapping[str, Any],
    rows: int | None = None,
) -> Samples:
    """Find the samples of an example, at its inputs and at the cuts.

    It is the dimension along which nothing meets, batch statistics aside: dimension 0 if that holds in the whole model,
    else the first other one of which it does, else dimension 0. Before a cut nothing may have met along either: a
    linear layer in front of an LSTM sees no time steps.

    Args:
        model: owner of the modules.
        graph: its training graph with the augmentations inserted.
        cuts: their nodes.
        examples: the inputs by name; no tensors are no examples.
        constants: what opened code refers to and no module owns, by name.
        rows: the dimension of the inputs, where it is told.

    Raises:
        InvalidOption: ``rows`` contradicts the proof, or the samples cannot be told at a cut.
    """
    ask = Asker(model, graph, examples, constants)
    lead = ask.lead
    if lead is None:
        assumed = "" if rows in (None, 0) else f"the {rows} of rows= is taken for the dimension at every site"
        place = BATCH if rows is None else Rows(rows)
        note = assumed or "rows: dimension 0 is taken for the batch: no input is a tensor"
        return Samples(0, {}, (place,) * len(cuts), (), note)
    if rows is not None:
        _check_dim(lead, rows)
    chosen, proofs, why = _choose(ask, cuts, lead, rows)
    places: list[Rows] = []
    notes = [
        f"rows: dimension {chosen} of the inputs is taken for the samples, as along dimension 0 {why}"
    ] * bool(why)
    for i, cut in enumerate(cuts):
        proof = proofs[min(i, len(proofs) - 1)]
        proved: Rows | None = proof.place
        if proved is not None:
            places.append(proved)
            continue
        found, note = _by_sizes(cut, proof, lead.shape[chosen], rows)
        notes.append(note)
        places.append(found)
    if rows is None:
        check_listed(ask.examples, lead, cuts, places)
    count = int(lead.shape[chosen])
    shapes = [getattr(value_of(cut), "shape", None) for cut in cuts]
    tied = tuple(counted(place, shape, count) for place, shape in zip(places, shapes, strict=True))
    return Samples(count, ask.dims(chosen), tied, tuple(proofs), "; ".join(dict.fromkeys(notes)))


def check_given(rows: int | str | None, guessed: str) -> None:
    """Check that what is told of the samples is told of the user's own inputs.

    Raises:
        InvalidOption: the inputs were guessed.
    """
    if rows and guessed:
        raise InvalidOption(f"rows={rows!r} is about your inputs: pass example_inputs with it.")


def _choose(
    ask: Asker, cuts: Sequence[fx.Node], lead: Tensor, rows: int | None
) -> tuple[int, Sequence[Proof], Meeting | None]:
    """The dimension of the leading input that holds the samples, what is proved of the cuts along it, and why not 0.

    Raises:
        InvalidOption: it is told, and nothing meets along another one, while rows meet along it; or it is not told, and
            the size of the one is fixed, while nothing meets along the other.
    """
    chosen = 0 if rows is None else rows
    proofs = ask(cuts, chosen)
    whole = (
        proofs if rows is None else ask(None, chosen, stop=True)
    )  # a told one may be fixed behind the cuts
    fixed = ask.fixed_by(proofs) or ask.fixed_by(whole)
    other = None
    if rows is None or fixed or proofs[0].verdict == "coupled":
        other = _other(ask, cuts, lead, chosen, holds=apart(proofs[:1]) and not fixed)
    if other is None or (
        fixed and rows == 0
    ):  # there is no other, or it is told and nothing speaks against it
        return chosen, [_as_one_sample(p, chosen) for p in proofs] if fixed else proofs, None
    if fixed and rows is None and not ask.meets(cuts, chosen):
        why = next(p.meeting for p in (*proofs, *whole) if p.meeting)
        raise InvalidOption(
            f"which dimension of the inputs holds the samples cannot be told: with another size of dimension {chosen} "
            f"the forward fails ({why}), and along dimension {other} nothing meets. Pass rows={chosen} or rows={other}."
        )
    if rows is not None:
        against = f"with another size of dimension {rows} the forward fails, and"
        if not fixed:
            against = f"along dimension {rows} {proofs[0].meeting}, and"
        raise InvalidOption(
            f"rows={rows}: {against} along dimension {other} nothing meets. "
            f"Leave rows= away, or give rows={other}."
        )
    if apart(proofs):  # they meet behind the cuts
        proofs = ask(None, chosen, stop=True)
    return other, ask(cuts, other), next((p.meeting for p in proofs if not apart([p])), None)


def _as_one_sample(proof: Proof, dim: int) -> Proof:
    """The same with the likeliest reason why a forward takes no other size of its samples' dimension."""
    if proof.meeting is None or proof.meeting.kind != "failure":
        return proof
    why = (
        f"{proof.meeting.why.rstrip('.')} (the forward fails for another size of dimension {dim}: if the example is "
        "one sample, add a batch dimension)"
    )
    return dataclasses.replace(proof, meeting=dataclasses.replace(proof.meeting, why=why))


def proofs_of(
    model: nn.Module,
    graph: fx.Graph,
    nodes: Sequence[fx.Node],
    examples: Mapping[str, Any],
    constants: Mapping[str, Any],
    dim: int = 0,
) -> dict[fx.Node, Proof]:
    """What one trace tells of the rows of many values, samples along ``dim`` of the inputs; nothing if it fails."""
    ask = Asker(model, graph, examples, constants)
    if ask.lead is None:
        return {}
    found = ask(nodes, dim)
    return dict(zip(nodes, found, strict=True)) if len(found) == len(nodes) else {}


def sample_dim(
    model: nn.Module,
    graph: fx.Graph,
    examples: Mapping[str, Any],
    constants: Mapping[str, Any],
    rows: int | None = None,
) -> int:
    """The dimension of the inputs that holds the samples: the told one, else that along which nothing meets, or 0.

    Raises:
        InvalidOption: there is no such dimension.
    """
    ask = Asker(model, graph, examples, constants)
    lead = ask.lead
    if lead is None:
        return rows or 0
    if rows is not None:
        _check_dim(lead, rows)
        return rows
    if apart(ask(None, 0, stop=True)):
        return 0
    others = (dim for dim in range(1, min(lead.dim(), 4)) if lead.shape[dim] > 1)
    return next((dim for dim in others if apart(ask(None, dim, stop=True))), 0)


def _by_sizes(cut: fx.Node, proof: Proof, count: int, rows: int | None) -> tuple[Rows, str]:
    """Where the rows lie as far as sizes tell, and a note that it is no more than that.

    Raises:
        InvalidOption: sizes do not tell.
    """
    place = proof.sizes
    shape = tuple(getattr(value_of(cut), "shape", ()))
    if place is not None and shape and shape[place.dim] != count * place.slices:
        place = None  # of the trace, which came to another shape than the example
    if place is None and rows is not None and rows < len(shape):
        place = Rows(rows)
    as_long = [dim for dim, size in enumerate(shape) if size == count]
    if place is None and len(as_long) == 1:
        place = Rows(as_long[0])
    if place is None and (not shape or shape[0] == count):
        place = BATCH
    if place is None:
        raise InvalidOption(
            f"which rows of '{cut.meta.get('site') or cut.name}' ({'×'.join(map(str, shape))}) belong to which of the "
            f"{count} samples cannot be told: {proof.meeting}. Choose another site, or pass rows=."
        )
    because = "is as long as the batch" if shape else "is taken, of a size that is not known"
    return place, f"rows NOT proved to be samples, dimension {place.dim} {because}: {proof.meeting}"


def _check_dim(lead: Tensor, rows: int) -> None:
    if not 0 <= rows < lead.dim():
        raise InvalidOption(f"rows={rows}: the input has dimensions 0 to {lead.dim() - 1}.")


def _other(ask: Asker, cuts: Sequence[fx.Node], lead: Tensor, chosen: int, *, holds: bool) -> int | None:
    """Another dimension along which nothing meets in the whole model; ``holds``: along this nothing met at the cuts."""
    # where nothing stands against it the conventions are tried alone: samples come first, or behind the time
    for dim in range(min(lead.dim(), 2 if holds else 4)):
        if dim == chosen or lead.shape[dim] < 2 or not apart(ask(cuts, dim, stop=True)[:1]):
            continue
        if holds and apart(ask(None, chosen, stop=True)):
            return None  # nor behind them
        holds = False
        if apart(ask(None, dim, stop=True)):
            return dim
    return None
