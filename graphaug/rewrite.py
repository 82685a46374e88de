"""The two verbs of the library: put Deep Augmentation into a model, and take it out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from torch import fx, nn

from graphaug.augment.rows import Rows
from graphaug.augment.site import Augmentation
from graphaug.capture.dataflow import writes_into_inputs
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption, NotRewritten, SparseBackwardError
from graphaug.proof.independence.samples import Samples, find_samples
from graphaug.proof.independence.told import told_samples
from graphaug.proof.separation import BYPASSED, SEPARATES, check_sites
from graphaug.proof.shadow.faithful import as_captured, check_faithful
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At
from graphaug.sites import structure_of
from graphaug.sparse.choose import Choice, Surgery, check_split, choose, flop_share, norms_to_open
from graphaug.sparse.views import view_choice, view_notes, with_views
from graphaug.surgery.freeze import freeze as freeze_pass
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import fresh_names, place, place_eval
from graphaug.surgery.plan import Asked, Plan, Request
from graphaug.surgery.planned import notes_of, planned_sites
from graphaug.surgery.requests import (
    Change,
    Options,
    augmentation_of,
    base_options,
    check_options,
    earlier_rewrite,
    joined,
    may_stop,
    repeated,
    requested,
    suggested,
    take_turns,
)
from graphaug.surgery.rewritten.parts import Parts, constants_module
from graphaug.surgery.unwrap import plain_model, unwrap_hint


@overload
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    dry_run: Literal[True],
    **options: Unpack[Options],
) -> Plan: ...
@overload
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    dry_run: Literal[False] = False,
    **options: Unpack[Options],
) -> AugmentedModule: ...
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    rate: float | None = None,
    subset: float = 0.5,
    stop_grad: bool = False,
    transform: Change | None = None,
    views: int = 1,
    one_site: bool = False,
    sampling: str = "exact",
    granularity: str | None = None,
    pairing: str = "any",
    freeze: str | None = None,
    side: str = "after",
    exclude: At | None = None,
    expect: int | None = None,
    allow_bypass: bool = False,
    backward: str = "auto",
    rows: int | str | None = None,
    example_inputs: Any = None,
    dry_run: bool = False,
) -> AugmentedModule | Plan:
    """Put Deep Augmentation into a model, at one or several of its layers.

    The model is not changed and nothing of it is copied: the result shares its modules, parameters and
    buffers, has the same ``state_dict`` keys, and computes the same in eval mode, bit for bit.

    Args:
        model: a plain ``nn.Module``; rewrite before wrapping it in DDP or compiling it.
        at: where: a selector, a list of them, or ``{selector: rate or transform}``; see the selection language. Or an
            entry of `graphaug.analysis.advise`, whose site and ``stop_grad`` are taken. Or a `Plan`, which has all
            options in it: what was done to another model of that architecture is done to this one.
        rate: dropout probability on the augmented rows, in [0, 1]; 0.5 if neither it nor a transform is given.
        subset: share of the rows (the batch dimension at the cut) that is augmented, in [0, 1].
        stop_grad: stop the gradient of the augmented rows behind what is done to them.
        transform: what is done to the augmented rows instead of dropout: one of `graphaug.Noise`, `graphaug.Mix`, …, or
            any module or function of rows of shape (n, …). Options of the site that it was given come first.
        views: deep views: the prefix runs once, at the site every row becomes so many rows with draws of their own, and
            the output is ``[z1; …; zk]``. What the copies of the input would not share is in the plan's notes.
        one_site: of several sites one acts in a forward, drawn uniformly each time (Manifold Mixup, Verma et al. 2019).
        sampling: ``"exact"``, ``round(subset * rows)`` rows, or ``"bernoulli"``, each row by itself.
        granularity: of dropout, what is dropped together: ``"element"`` (the default), ``"channel"``, ``"position"``.
        pairing: ``"any"`` row, or ``"one-sided"``: rows of the first half (the first view) only.
        freeze: ``"before"``: nothing up to and including the cut is trained; ``"after"``: nothing behind.
        side: ``"after"``: the output of what ``at`` names; ``"before"``: its input.
        exclude: sites to leave out, in the same language as ``at``.
        expect: how many sites must match; with it, a module called several times is taken in all its calls.
        allow_bypass: accept a site that does not separate the input from the output.
        backward: ``"dense"`` runs the whole backward; ``"sparse"`` skips that of stopped rows below the cut,
            or raises; ``"proved"`` does so only where rows are proved independent; ``"auto"`` is sparse where
            they are, or where the example shows nothing against it and an operation is unknown, and the plan says
            which of it, and why not.
        rows: the dimension of the inputs that holds the samples, where it is not the one along which nothing meets; or
            the name of an input that tells the sample of every entry of dimension 0, as torch_geometric's ``batch``
            tells the graph of every node: subset, counts and the mask are then of those, and the backward is dense.
        example_inputs: what the model is called with (a tensor, a tuple, a dict of keywords; 2 rows or
            more). Only the final check, and the probe behind a sparse backward that is not proved, compute with it.
            Without it inputs are taken from what the model declares or from its first layers, as sizes without
            data; the plan says which.
        dry_run: return the plan and build nothing.

    Returns:
        The rewritten model, an ``fx.GraphModule`` with ``plan``, ``set``, ``drawn`` and ``augmentations``.
        With ``dry_run``, its `Plan`.

    Raises:
        SiteNotFound, AmbiguousSite, SiteCountMismatch, SelectorError: ``at`` does not say where.
        BypassedSite: the site does not separate the input from the output.
        CaptureError: the forward cannot be captured.
        InvalidOption: an option is outside its domain, or of dropout where there is a transform.
        AlreadyRewritten: the model is augmented at that site already.
        SharedAcrossCut: ``freeze`` would freeze a parameter that is used on both sides.
        SparseBackwardError: ``backward="sparse"`` and it would not be exact, or ``"proved"`` and it is not proved.
        UnsupportedModel: the model is wrapped, compiled, or no module.

    Examples:
        >>> import torch, graphaug as ga
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batch = torch.randn(6, 4)
        >>> aug = ga.rewrite(model, at="1", rate=0.5, subset=0.5, stop_grad=True, example_inputs=batch)
        >>> aug.plan.backward
        'sparse'
        >>> aug.train()(batch).shape  # half of the rows were augmented behind the ReLU
        torch.Size([6, 2])
        >>> ga.rewrite(model, at={"0": 0.1, "1": 0.3}, dry_run=True).sites[1].request.rate
        0.3
    """
    at, stop_grad, why = suggested(at, stop_grad)
    earlier = earlier_rewrite(model)
    model = plain_model(model)
    options = base_options(rate, subset, stop_grad, sampling, granularity, pairing, transform)
    asked = Asked(freeze, backward, allow_bypass, rows, views, one_site)
    check_options(options, asked)

    with undisturbed(model):
        wanted = at.asked if isinstance(at, Plan) else asked
        flops = wanted.views != 1 or (may_stop(at, options) and wanted.backward != "dense")
        structure = structure_of(model, example_inputs, count_flops=flops)
        if isinstance(at, Plan):
            given = {"side": (side, "after"), "exclude": (exclude, None), "expect": (expect, None)}
            requests = repeated(structure, at, options, {**given, "options": (asked, Asked())})
        else:
            requests = requested(structure, at, options, side=side, exclude=exclude, expect=expect)
        if earlier is not None:
            requests = joined(earlier, requests, wanted)
        parts, choice, viewed = _operate(structure, requests, wanted, why)
        flags = [(m, m.training) for m in model.modules()]
        aug = _build(parts, wanted.backward, choice, viewed)
    if dry_run:
        for module, flag in flags:  # frozen norms went to eval mode
            module.training = flag
        return aug.plan
    if parts.plan.freeze is not None:
        for name in parts.plan.freeze.parameters:
            model.get_parameter(name).requires_grad_(False)
    return aug


def _operate(
    structure: ModelStructure, requests: Sequence[Request], asked: Asked, why: str
) -> tuple[Parts, Choice, fx.Graph | None]:
    """Capture, insert, prove that the cuts separate, and choose a backward; the model itself is only read."""
    model = structure.model
    names = fresh_names(model, [r.target for r in requests])
    resized = frozenset(r.target for r in requests if r.resizes)
    captured, graph, placed = place(structure, names, training=True, resized=resized)
    inside: frozenset[str] = frozenset()
    if asked.backward == "sparse":
        inside = norms_to_open(graph, list(placed.values()), model)
        captured, graph, placed = place(structure, names, training=True, inside=inside, resized=resized)
    notes = check_sites(captured, graph, placed, asked.allow_bypass)
    frozen = None if asked.freeze is None else freeze_pass(graph, list(placed.values()), model, asked.freeze)

    eval_captured, eval_graph = place_eval(structure, names, graph, inside, resized)
    constants = constants_module({**captured.constants, **eval_captured.constants})
    cuts = [placed[r.target] for r in requests]
    if asked.rows and structure.signature.guessed:
        raise InvalidOption(f"rows={asked.rows!r} is about your inputs: pass example_inputs with it.")
    if isinstance(asked.rows, str) and (asked.views > 1 or any(r.transform is not None for r in requests)):
        raise InvalidOption(
            f"rows={asked.rows!r} tells samples of any size, for which dropout alone is defined: leave transform= and "
            "views= out."
        )
    told: Any = told_samples if isinstance(asked.rows, str) else find_samples
    samples: Samples = told(model, graph, cuts, structure.signature.examples, captured.constants, asked.rows)
    surgery = Surgery(
        structure,
        captured,
        lambda other: place(other, names, training=True, inside=inside, resized=resized)[:2],
        graph,
        cuts,
        requests,
        samples,
        bypass=next((note.removeprefix(BYPASSED) for note in notes.values() if note != SEPARATES), ""),
        frozen=frozenset() if frozen is None else frozenset(frozen.parameters),
    )
    choice, viewed, more = _choose(asked, surgery)
    shares = {r.target: flop_share(graph, placed[r.target]) for r in requests if structure.count_flops}
    plan = Plan(
        model=structure.name,
        sites=planned_sites(requests, names, placed, samples.places, notes, shares),
        nodes=len(graph.nodes),
        opened=tuple(sorted(captured.opened - {""})),
        two_graphs=eval_graph is not None or viewed is not None,
        backward=choice.kind,
        reason=choice.reason,
        freeze=frozen,
        assumptions=tuple(map(str, captured.assumptions)),
        notes=(
            *filter(None, [why, structure.guess_note, samples.note]),
            *notes_of(model, captured, requests, placed),
            *more,
            *(["the example has one row, which was taken twice"] if structure.signature.doubled else []),
        ),
        asked=asked,
    )
    added = _augmentations(model, names, requests, samples.places)
    if asked.one_site:
        take_turns(added, graph)
    facts = {True: captured.facts, False: eval_captured.facts}
    parts = Parts(
        model, graph, eval_graph, {**added, **constants}, structure.signature, plan, choice.split, facts=facts
    )
    parts.runs_original = not writes_into_inputs(graph if eval_graph is None else eval_graph)
    parts.row_dims = {
        name: samples.dims[id(t)] for name, t in structure.signature.examples.items() if id(t) in samples.dims
    }
    return parts, choice, viewed


def _choose(asked: Asked, surgery: Surgery) -> tuple[Choice, fx.Graph | None, list[str]]:
    """The backward; of deep views their training graph, and what they share."""
    if asked.views == 1:
        return choose(asked.backward, surgery), None, []
    choice = view_choice(asked.backward, surgery, asked.views)
    return choice, with_views(surgery, asked.views), view_notes(surgery, asked.views)


def _augmentations(
    model: nn.Module, names: Mapping[Target, str], requests: Sequence[Request], places: Sequence[Rows]
) -> dict[str, Augmentation]:
    """The modules that act at the sites, on the model's device."""
    device = next((p.device for p in model.parameters()), None)
    made = [augmentation_of(r, place).to(device) for r, place in zip(requests, places, strict=True)]
    return dict(zip([names[r.target] for r in requests], made, strict=True))


def _build(parts: Parts, backward: str, choice: Choice, viewed: fx.Graph | None) -> AugmentedModule:
    """Build the model, and check what can only be checked by running it: its outputs, its rows.

    Raises:
        CaptureError: it does not compute what the original computes.
        SparseBackwardError: rows depend on each other, and ``backward="sparse"`` was asked for.
    """
    signature = parts.signature
    parts.signature = signature.forget_examples()
    aug = AugmentedModule(parts)
    note = check_faithful(parts.model, as_captured(aug), signature)
    if note:
        parts.plan = dataclasses.replace(parts.plan, notes=(*parts.plan.notes, note))
    if viewed is not None:  # what was compared is the graph of the rows as they come in
        parts.eval_graph = parts.training_graph if parts.eval_graph is None else parts.eval_graph
        parts.training_graph = viewed
        aug = AugmentedModule(parts)
    if choice.split is not None:
        against = check_split(aug, choice.split, signature, choice.proved)
        if against and backward in ("sparse", "proved"):
            site = parts.plan.sites[0].request.target
            raise SparseBackwardError(
                f"backward='{backward}' is not possible at '{site}': {against}. Use 'dense'."
            )
        if against:
            parts.split = None
            parts.plan = dataclasses.replace(parts.plan, backward="dense", reason=against)
        for augmentation in aug.augmentations.values():
            augmentation.forget()
    return aug


def strip(aug: nn.Module) -> nn.Module:
    """Take Deep Augmentation out again.

    Args:
        aug: a model made by `rewrite`.

    Returns:
        The very model that was rewritten, with its trained weights; what ``freeze`` froze is trainable again.

    Raises:
        NotRewritten: ``aug`` was not made by `rewrite`.

    Examples:
        >>> import torch, graphaug as ga
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> ga.strip(ga.rewrite(model, at="0")) is model
        True
    """
    if not isinstance(aug, AugmentedModule):
        raise NotRewritten(
            f"strip takes what graphaug.rewrite returned, not a {type(aug).__name__}.{unwrap_hint(aug)}"
        )
    model = aug.original
    if aug.plan.freeze is not None:
        for name in aug.plan.freeze.parameters:
            model.get_parameter(name).requires_grad_(True)
    model.train(aug.training)
    return model
