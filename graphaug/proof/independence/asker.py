"""Questions to a model about its samples: what is proved of values, if they lie along one dimension of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from graphaug.capture.recording.values.structures import tensors_in
from graphaug.capture.state import unchanged
from graphaug.proof.independence.places import Proof
from graphaug.proof.independence.rows import prove
from graphaug.proof.part import Run, cut_input, inputs_of


def leading(examples: Mapping[str, Any]) -> Tensor | None:
    """The first input that holds data: of floating point, or else the first tensor."""
    found = [t for t in tensors_in(dict(examples)) if t.dim() > 0]
    return next((t for t in found if t.is_floating_point()), found[0] if found else None)


def apart(proofs: Sequence[Proof]) -> bool:
    """Whether no row of these values sees another, batch statistics aside."""
    return all(p.verdict in ("proved", "statistics") for p in proofs)


class Asker:
    """Asks for proofs of a graph's values, samples along one dimension of the inputs or another.

    Attributes:
        lead: the input whose dimensions are meant, or None if no input is a tensor.
    """

    def __init__(
        self, model: nn.Module, graph: fx.Graph, examples: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> None:
        self.model, self.graph, self.constants = model, graph, constants
        self.examples = inputs_of(graph, examples)  # in the forward's order, whatever the user's is
        self.lead = leading(self.examples)

    def dims(self, dim: int) -> dict[int, int]:
        """The dimension of samples of every input, if it is the given one in the leading input."""
        assert self.lead is not None
        count, found = self.lead.shape[dim], {}
        for t in tensors_in(dict(self.examples)):
            if t.dim() > dim and t.shape[dim] == count:
                found[id(t)] = dim
            elif count in t.shape and dim > 0:
                found[id(t)] = list(t.shape).index(count)
        return found

    def __call__(self, cuts: Sequence[fx.Node] | None, dim: int | None, stop: bool = False) -> list[Proof]:
        """The proofs of the cuts' values, or of everything that the graph returns; without ``dim`` nothing has rows."""
        return self._of(cuts, {} if dim is None else self.dims(dim), stop)

    def _of(self, cuts: Sequence[fx.Node] | None, dims: dict[int, int], stop: bool = True) -> list[Proof]:
        ends = None if cuts is None else [cut_input(c) for c in cuts]
        run = Run.up_to(self.model, self.graph, ends, self.constants)
        with unchanged(self.model, tensors=False):
            self.model.train()
            return prove(self.model, run, self.examples, dims, stop)

    def meets(self, cuts: Sequence[fx.Node], dim: int) -> bool:
        """Whether rows meet along a dimension, at the cuts or behind them, if it grows in every input that has it."""
        assert self.lead is not None
        count = self.lead.shape[dim]
        dims = {
            id(t): list(t.shape).index(count) for t in tensors_in(dict(self.examples)) if count in t.shape
        }
        dims |= self.dims(dim)
        proofs = (self._of(ends, dims) for ends in (cuts, None))
        return any(not failed(found) and not apart(found) for found in proofs)

    def fixed_by(self, proofs: Sequence[Proof]) -> bool:
        """Whether the forward failed, and does not with the example's own sizes."""
        return failed(proofs) and not failed(self(None, None))


def failed(proofs: Sequence[Proof]) -> bool:
    """Whether the forward could not be followed."""
    return any(p.meeting is not None and p.meeting.kind == "failure" for p in proofs)
