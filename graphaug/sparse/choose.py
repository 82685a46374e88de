"""Dense or sparse: which backward a rewritten model gets, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import before, parameters_of
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.names import CONSTANTS
from graphaug.capture.recording.relied.objects import asked_by, asked_of_one, asks_for_layout
from graphaug.capture.values import describe, value_of
from graphaug.errors import CaptureError, GraphaugError, SparseBackwardError, several
from graphaug.proof.independence.places import Proof
from graphaug.proof.independence.samples import Samples
from graphaug.proof.prefix import prefix_modules, statistics_modules
from graphaug.select.model_structure import ModelStructure, ancestors
from graphaug.sparse.batch import Batch, Viewed
from graphaug.sparse.kept.prefix import Kept
from graphaug.sparse.run import Split
from graphaug.sparse.saving import SPLIT_ANYWAY, saving
from graphaug.sparse.split import split
from graphaug.sparse.two_streams import BATCH_NORMS, is_plain_norm, pair
from graphaug.surgery.plan import Request
from graphaug.torch_private import quiet_fakes, set_grad_enabled


@dataclass(frozen=True)
class Choice:
    """A backward, the reason for it in a clause, and for a sparse one how the graph is split and if that is proved."""

    kind: str
    reason: str
    split: Split | None = None
    proved: bool = False


@dataclass(frozen=True)
class Surgery:
    """What there is to know of a rewrite before its backward is chosen.

    Attributes:
        structure: the model and its example.
        captured: its capture.
        recapture: captures and inserts again, for an structure with another batch size.
        graph: the training graph, with the augmentation inserted.
        cuts: the augmentations' nodes.
        requests: their options.
        samples: where the rows lie, and what is proved of them.
        bypass: what leads around a cut, in words; empty if every cut separates.
        frozen: names of the parameters that the freeze will freeze.
    """

    structure: ModelStructure
    captured: Captured
    recapture: Callable[[ModelStructure], tuple[Captured, fx.Graph]]
    graph: fx.Graph
    cuts: Sequence[fx.Node]
    requests: Sequence[Request]
    samples: Samples
    bypass: str
    frozen: frozenset[str]

    def values_for(self, examples: dict[str, Any]) -> dict[fx.Node, Any] | None:
        """The values of the graph's nodes on other examples; None where the forward runs other code for them.

        Raises:
            GraphaugError: it does not take them, or does not come by the site.
        """
        with quiet_fakes():
            other, graph = self.recapture(self.structure.with_examples(examples))
        same_code = self.graph.python_code("self").src == graph.python_code("self").src
        if not same_code or list(map(str, self.captured.assumptions)) != list(map(str, other.assumptions)):
            return None
        return {n: value_of(m) for n, m in zip(self.graph.nodes, graph.nodes, strict=True)}


def choose(backward: str, surgery: Surgery, viewed: Viewed | None = None) -> Choice:
    """Choose the backward of a graph with its augmentation inserted; what is not proved is tried later.

    Args:
        backward: what was asked for.
        surgery: the rewrite.
        viewed: its graph in which rows become views, if they do.

    Raises:
        SparseBackwardError: ``backward="sparse"`` and it would not be exact, or ``"proved"`` and it is not proved; says
            why and what to do.
    """
    if backward == "dense":
        return Choice("dense", "asked for")
    try:
        return _sparse(backward, surgery, viewed)
    except SparseBackwardError as error:
        if backward in ("sparse", "proved"):
            way = "" if any(r.stop_grad for r in surgery.requests) else "stop_grad=True, or "
            raise SparseBackwardError(
                f"backward='{backward}' is not possible at '{surgery.requests[0].target}': {error}. "
                f"Use {way}backward='dense'."
            ) from error
        return Choice("dense", str(error))


def _asked_against(surgery: Surgery, viewed: Viewed | None) -> str:
    """What of the request rules a sparse backward out, whatever the model; or an empty string."""
    requests = surgery.requests
    request = requests[0]
    if not any(r.stop_grad for r in requests):
        return "stop_grad is off, so every row has a gradient"
    if viewed is not None and request.pairing != "together":
        return "a row is stopped in one view and not in another; pairing='together' stops all of them or none"
    if len(requests) > 1:
        return f"there are {len(requests)} sites, and rows are split at one"
    if request.resizes:
        return f"{type(request.transform).__name__} changes the sizes behind the cut"
    if request.sampling != "exact":
        return "sampling='bernoulli' stops a random number of rows; sampling='exact' a fixed one"
    if not surgery.samples.proofs:
        return "samples are told by an input, and have any number of entries, which are not split"
    if surgery.bypass:
        return f"the cut does not separate the input from the output: {surgery.bypass}"
    return ""


def _sparse(backward: str, surgery: Surgery, viewed: Viewed | None) -> Choice:
    structure, graph, request = surgery.structure, surgery.graph, surgery.requests[0]
    refuse = SparseBackwardError
    if against := _asked_against(surgery, viewed):
        raise refuse(against)
    (cut,) = surgery.cuts
    model = structure.model
    if not _trained(graph, cut, model, surgery.frozen):
        raise refuse("nothing before the cut is trained, so nothing runs backward there")
    norms = list(statistics_modules(graph, cut, model))
    streams = backward == "sparse" and all(_is_open_norm(graph, path, module) for path, module in norms)
    if norms and not streams:
        path, module = (
            norms[0] if backward != "sparse" else next(n for n in norms if not _is_open_norm(graph, *n))
        )
        hooked = type(module) in BATCH_NORMS and not is_plain_norm(module)
        hooks = ", and has hooks, which two streams would not call" if hooked else ""
        possible = backward == "auto" and all(is_plain_norm(norm) for _, norm in norms)
        way = f"; {SPLIT_ANYWAY} in two streams that share them" if possible else ""
        raise refuse(f"{type(module).__name__} '{path}' couples the rows by its batch statistics{hooks}{way}")
    if any(n.target is set_grad_enabled for n in graph.nodes):
        raise refuse("opened code switches gradients off and on itself")
    proof = surgery.samples.proofs[0]
    if against := _against(proof, backward, {path for path, _ in norms}, surgery.samples):
        raise refuse(against)
    if proof.verdict not in ("proved", "statistics") and structure.signature.guessed:
        raise refuse(
            f"rows are not proved independent ({proof.meeting}), and there are no example_inputs to try them with"
        )
    if set_there := _set_on_prefix(graph, cut, model):
        raise refuse(f"{set_there} changes in every call what a closed module before the cut holds")
    size = saving(graph, cut, request.subset, 1 if viewed is None else viewed.times, backward)
    whole = (graph, cut, two_sizes(surgery)) if viewed is None else (viewed.graph, viewed.cut, viewed.batch)
    found = split(*whole, surgery.samples.places[0])
    # two streams look at their norms themselves, in every step
    prefix = ((path, m) for path, m in prefix_modules(graph, cut, model) if path not in dict(norms))
    ahead = before(cut)
    read = (str(n.target) for n in ahead if n.op == "get_attr")
    tensors = [path for path in read if path.partition(".")[0] != CONSTANTS]
    kept = Kept.in_training(model, prefix, tensors=tensors)
    functions = kept.reached.functions
    if one := asked_of_one(functions, ahead):
        raise refuse(f"code before the cut reads .{one}, which tells of the batch itself and not of its rows")
    by_layout, by_class = asks_for_layout(functions, ahead), asked_by(functions).classes
    found = dataclasses.replace(found, least=proof.least, kept=kept, by_layout=by_layout, by_class=by_class)
    if not norms:
        if proof.verdict == "proved":
            return Choice("sparse", f"rows proved independent; {size}", found, proved=True)
        return Choice("sparse", f"tried, not proved ({proof.meeting}); {size}", found)
    paths = [path for path, _ in norms]
    found = dataclasses.replace(found, two_streams=pair(found.prefix, paths))
    dropped = "the gradient that stopped rows get through the statistics is dropped"
    reason = f"two streams share the statistics of {several(len(paths), 'BatchNorm')}, {dropped}; {size}"
    return Choice("sparse", reason, found, proved=proof.verdict == "statistics")


def _set_on_prefix(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> str:
    """An assignment of opened code to what a closed module before the cut holds, or an empty string."""
    closed = {path for path, _ in prefix_modules(graph, cut, model)}  # and all that lies in them
    sets = (node for node in graph.nodes if node.target is setattr)
    return next((describe(node) for node in sets if str(getattr(node.args[0], "target", "")) in closed), "")


def _against(proof: Proof, backward: str, norms: set[str], samples: Samples) -> str:
    """What the proof of a cut says against splitting the rows there, or an empty string.

    Batch statistics are those of norms that two streams share. An operation without a rule may be tried.
    """
    if proof.verdict == "statistics" and all(m.module.partition("@")[0] in norms for m in proof.statistics):
        return ""
    if proof.verdict in ("coupled", "statistics"):
        kept_state = proof.meeting is not None and proof.meeting.kind == "state"
        return f"{proof.meeting}" if kept_state else f"rows meet: {proof.meeting}"
    if proof.verdict == "proved":
        return ""
    assert proof.meeting is not None
    against = f"rows are not proved independent: {proof.meeting}"
    if any(samples.dims.values()):
        return f"{against}, and are tried along dimension 0 only"
    return against if backward == "proved" or norms or not proof.meeting.op else ""


def norms_to_open(graph: fx.Graph, cuts: Sequence[fx.Node], model: nn.Module) -> frozenset[str]:
    """The modules to open so that every BatchNorm before the cut is a node of its own."""
    paths = {
        path for cut in cuts for path, m in statistics_modules(graph, cut, model) if type(m) in BATCH_NORMS
    }
    return frozenset(a for path in paths for a in ancestors(path))


def _is_open_norm(graph: fx.Graph, path: str, module: nn.Module) -> bool:
    called = any(n.op == "call_module" and n.target == path for n in graph.nodes)
    return called and is_plain_norm(module)


def _trained(graph: fx.Graph, cut: fx.Node, model: nn.Module, frozen: frozenset[str]) -> bool:
    held = {id(p) for name, p in model.named_parameters() if name in frozen}
    return any(
        p.requires_grad and id(p) not in held
        for n in before(cut)
        if not n.meta.get("augmentation")
        for p in parameters_of(n, model.get_submodule, model.get_parameter)
    )


def two_sizes(surgery: Surgery) -> Batch:
    """Capture once more at another batch size, and pair the values of the two graphs."""
    structure = surgery.structure
    rows, dims = surgery.samples.count, surgery.samples.dims
    more = rows + 3

    def enlarge(t: Tensor) -> Tensor:
        if id(t) not in dims:
            return t
        return t.index_select(dims[id(t)], torch.arange(more, device=t.device) % rows)

    bigger = map_tensors(enlarge, dict(structure.signature.examples))
    try:
        values = surgery.values_for(bigger)
    except CaptureError as error:
        raise SparseBackwardError(f"the forward does not take {more} rows instead of {rows}") from error
    except GraphaugError as error:  # the site is not reached then
        raise SparseBackwardError(f"the forward takes another way for {more} rows than for {rows}") from error
    if values is None:
        raise SparseBackwardError("the forward reads the batch size into Python")
    return Batch(surgery.graph, (rows, more), values)
