"""Stochastic depth that saves time: residual branches run on the rows that are kept, and on no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_rate
from graphaug.augment.rows import Rows
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.target import Target
from graphaug.errors import AlreadyRewritten, InvalidOption, SparseBackwardError
from graphaug.proof.independence.samples import find_samples
from graphaug.proof.marked import Marked, mark
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At, resolve
from graphaug.sites import structure_of
from graphaug.sparse.choose import Surgery, two_sizes
from graphaug.sparse.crossing import Known, copied
from graphaug.sparse.kept.lost import Required
from graphaug.sparse.kept.prefix import Kept
from graphaug.sparse.skip import Branch, added_by, counting_input, find_branch, modules_of, skip
from graphaug.surgery.called.kept_rows import KeptRows
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import place
from graphaug.surgery.unwrap import plain_model


@checked_names
def skip_rows(
    model: nn.Module,
    at: At | Mapping[Any, float],
    rate: float = 0.4,
    *,
    exclude: At | None = None,
    expect: int | None = None,
    rows: int | None = None,
    example_inputs: Any = None,
) -> AugmentedModule:
    """Stochastic depth (Huang et al. 2016) that computes residual branches on the kept rows only, as DINOv2 does.

    In training mode a branch ``f`` of ``x + f(x)`` runs on ``max(1, round((1 - rate) * rows))`` rows, drawn afresh in
    every forward without replacement; the others get zeros, and the kept ones are multiplied with rows by kept ones:
    ``x + where(kept, f(x) * rows / kept, 0)``, forward and backward, at the price of the kept rows. All that only
    serves the branch is skipped with it, back to where its input also passes beside it. In eval mode nothing is. A
    hook on a module of a branch sees the kept rows.

    Args:
        model: a plain ``nn.Module``; it is not changed, and everything is shared with it.
        at: the ends of the branches, by the selection language: the module whose output is added (``"blocks.*.ls1"``,
            ``"layers.*.mlp"``); or ``{selector: rate}``.
        rate: the share of rows that is skipped, in [0, 1).
        exclude: sites to leave out.
        expect: how many sites must match.
        rows: the dimension of the inputs that holds the samples, where it is not the one along which nothing meets.
        example_inputs: what the model is called with; the proof follows the rows in it.

    Returns:
        The model with skipped rows; ``aug.skip_rows.kept`` are the rows that the first branch kept, indices.

    Raises:
        SiteNotFound, AmbiguousSite, SiteCountMismatch, SelectorError: ``at`` does not say where.
        CaptureError: the forward cannot be captured.
        InvalidOption: the rate is outside [0, 1), a site is no end of a residual branch, or it is not proved that the
            rows of the branch are independent, as behind a BatchNorm in it.
        UnsupportedModel: the model is wrapped, compiled, or no module.
        AlreadyRewritten: something was made of the model already, which would be lost.

    Example:
        >>> import torch, graphaug as ga
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.branch = torch.nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.branch(x)
        >>> x = torch.ones(10, 3)
        >>> skipped = ga.skip_rows(Block(), "branch", 0.4, example_inputs=x)
        >>> int((skipped(x) == x).all(1).sum()), len(skipped.skip_rows.kept)
        (4, 6)
    """
    if isinstance(model, AugmentedModule):
        raise AlreadyRewritten(
            f"this is what graphaug.{model.plan.purpose} made of a model, and skip_rows would lose it: give the model "
            "itself, skip_rows(strip(it), ...), with all branches in one call."
        )
    model = plain_model(model)
    with undisturbed(model, example_inputs):
        structure = structure_of(model, example_inputs)
        rates: dict[Target, float] = {}
        for selector, share in at.items() if isinstance(at, Mapping) else [(at, rate)]:
            share = check_rate(share)
            if share == 1:
                raise InvalidOption("rate=1 would skip every row of a branch: give less.")
            count = None if isinstance(at, Mapping) else expect
            for target in resolve(selector, structure, exclude=exclude, expect=count):
                rates[dataclasses.replace(target, path=structure.canonical(target.path))] = share
        return _skipped(structure, rates, rows)


def _skipped(structure: ModelStructure, rates: Mapping[Target, float], rows: int | None) -> AugmentedModule:
    targets = list(rates)
    marked = mark(structure, targets, "skip_rows")
    graph, branches, (whole, counted) = _branches(marked, targets, rows)
    for i, one in enumerate(branches):
        for other in branches[i + 1 :]:
            if one.region & other.region:
                raise InvalidOption("two of the branches have a part in common: name one of them.")
    added: dict[str, nn.Module] = {}
    replaced: dict[fx.Node, fx.Node] = {}
    notes = []
    for target, branch in zip(targets, branches, strict=True):
        name = marked.names[target]
        added[name] = KeptRows(rates[target], counted)
        skip(graph, branch, name, replaced, whole, counted)
        calls = [str(n.target) for n in graph.nodes if n in branch.region and n.op == "call_module"]
        notes.append(
            f"'{target}': {rates[target]:.0%} of the rows skip {', '.join(calls) or 'its operations'}"
        )
    graph.lint()
    plain = _without_marks(marked.graph if marked.eval_graph is None else marked.eval_graph, marked)
    plan = dataclasses.replace(marked.plan, two_graphs=True, reason="nothing is stopped", notes=tuple(notes))
    held = dict(m for branch in branches for m in modules_of(branch, structure.model))
    # a hook sees the rows that its module is called with; with a part in eval mode there would be no way to train
    kept = Kept.in_training(structure.model, held.items(), hooks=False, modes=False)
    required = Required(kept, "skip_rows")
    marked = dataclasses.replace(
        marked, facts={**marked.facts, True: (*marked.facts.get(True, ()), required)}
    )
    return marked.module(graph, plain, added, plan)


def _branches(
    marked: Marked, targets: Sequence[Target], rows: int | None
) -> tuple[fx.Graph, list[Branch], tuple[fx.Node, Rows]]:
    """A copy of the training graph without marks, the branches that end at the targets, and what counts the rows."""
    structure, names = marked.structure, marked.names
    cuts, examples = [marked.placed[t] for t in targets], marked.examples()
    samples = find_samples(structure.model, marked.graph, cuts, examples, marked.captured.constants, rows)
    surgery = Surgery(
        structure,
        marked.captured,
        lambda other: place(other, names, training=True)[:2],
        marked.graph,
        cuts,
        (),
        samples,
        bypass="",
        frozen=frozenset(),
    )
    graph, mapping = copied(marked.graph)
    ends = [mapping[cut].all_input_nodes[0] for cut in cuts]
    site = targets[0]
    try:
        if not samples.proofs:
            raise SparseBackwardError("no input is a tensor with rows")
        batch = two_sizes(surgery)
        _erase(graph, marked)
        back = {new: old for old, new in mapping.items()}
        dim = min(samples.dims.values(), default=0)
        known = Known(batch, back, structure.model, examples, marked.captured.constants, dim)
        found = []
        for number, end in enumerate(ends):
            site = targets[number]
            proof = samples.proofs[min(number, len(samples.proofs) - 1)]
            found.append(find_branch(graph, added_by(graph, end), proof, known))
        counting = counting_input(graph, samples.dims, examples)
    except SparseBackwardError as error:
        raise InvalidOption(f"the rows of a branch cannot be skipped at '{site}': {error}.") from error
    return graph, found, counting


def _without_marks(graph: fx.Graph, marked: Marked) -> fx.Graph:
    graph, _ = copied(graph)
    _erase(graph, marked)
    return graph


def _erase(graph: fx.Graph, marked: Marked) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in marked.names.values():
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
