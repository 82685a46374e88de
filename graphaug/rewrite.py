"""The two verbs of the library: put Deep Augmentation into a model, and take it out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from torch import fx, nn

from graphaug.augment.deep_augment import check_probability
from graphaug.augment.rows import Rows
from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import writes_into_inputs
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.target import Target
from graphaug.capture.values import value_of
from graphaug.errors import NotRewritten, SparseBackwardError
from graphaug.proof.independence.samples import find_samples
from graphaug.proof.separation import BYPASSED, SEPARATES, check_sites
from graphaug.proof.shadow.faithful import as_captured, check_faithful
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At
from graphaug.sites import structure_of
from graphaug.sparse.choose import Choice, Surgery, choose, flop_share, norms_to_open, probe_split
from graphaug.surgery.freeze import freeze as freeze_pass
from graphaug.surgery.methods import running_methods
from graphaug.surgery.module import AugmentedModule, Parts, constants_module
from graphaug.surgery.place import fresh_names, place, place_eval
from graphaug.surgery.plan import Plan, PlannedSite, Request
from graphaug.surgery.requests import Options, augmentation_of, check_options, joined, requested, suggested
from graphaug.surgery.unwrap import plain_model, unwrap_hint


@overload
def rewrite(
    model: nn.Module, at: At | Mapping[Any, float], *, dry_run: Literal[True], **options: Unpack[Options]
) -> Plan: ...
@overload
def rewrite(
    model: nn.Module,
    at: At | Mapping[Any, float],
    *,
    dry_run: Literal[False] = False,
    **options: Unpack[Options],
) -> AugmentedModule: ...
def rewrite(
    model: nn.Module,
    at: At | Mapping[Any, float],
    *,
    rate: float = 0.5,
    subset: float = 0.5,
    stop_grad: bool = False,
    sampling: str = "exact",
    granularity: str = "element",
    pairing: str = "any",
    freeze: str | None = None,
    side: str = "after",
    exclude: At | None = None,
    expect: int | None = None,
    allow_bypass: bool = False,
    backward: str = "auto",
    rows: int | None = None,
    example_inputs: Any = None,
    dry_run: bool = False,
) -> AugmentedModule | Plan:
    """Put Deep Augmentation into a model, at one or several of its layers.

    The model is not changed and nothing of it is copied: the result shares its modules, parameters and
    buffers, has the same ``state_dict`` keys, and computes the same in eval mode, bit for bit.

    Args:
        model: a plain ``nn.Module``; rewrite before wrapping it in DDP or compiling it.
        at: where: a selector, a list of them, or ``{selector: rate}``; see the selection language. Or an entry of
            `graphaug.analysis.advise`, whose site and ``stop_grad`` are taken.
        rate: dropout probability on the augmented rows, in [0, 1].
        subset: share of the rows (the batch dimension at the cut) that is augmented, in [0, 1].
        stop_grad: stop the gradient of the augmented rows behind the dropout.
        sampling: ``"exact"``, ``round(subset * rows)`` rows, or ``"bernoulli"``, each row by itself.
        granularity: what is dropped together: ``"element"``, ``"channel"`` or ``"position"``.
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
        rows: the dimension of the inputs that holds the samples, where it is not the one along which nothing meets.
        example_inputs: what the model is called with (a tensor, a tuple, a dict of keywords; 2 rows or
            more). Only the final check, and the probe behind a sparse backward that is not proved, compute with it.
            Without it inputs are taken from what the model declares or from its first layers, as sizes without
            data; the plan says which.
        dry_run: return the plan and build nothing.

    Returns:
        The rewritten model, an ``fx.GraphModule`` with ``plan``, ``set_rate`` and ``augmentations``.
        With ``dry_run``, its `Plan`.

    Raises:
        SiteNotFound, AmbiguousSite, SiteCountMismatch, SelectorError: ``at`` does not say where.
        BypassedSite: the site does not separate the input from the output.
        CaptureError: the forward cannot be captured.
        InvalidOption: an option is outside its domain.
        AlreadyRewritten: the model is augmented at that site already.
        SharedAcrossCut: ``freeze`` would freeze a parameter that is used on both sides.
        SparseBackwardError: ``backward="sparse"`` and it would not be exact, or ``"proved"`` and it is not proved.
        UnsupportedModel: the model is wrapped, compiled, or no module.
    """
    at, stop_grad, why = suggested(at, stop_grad)
    earlier = model if isinstance(model, AugmentedModule) else None
    model = plain_model(model)
    rate = check_probability("rate", rate)
    options = Request(Target(""), rate, subset, stop_grad, sampling, granularity, pairing)
    check_options(options, freeze, backward, allow_bypass, rows)

    with undisturbed(model):
        structure = structure_of(model, example_inputs, count_flops=stop_grad and backward != "dense")
        requests = requested(structure, at, options, side=side, exclude=exclude, expect=expect)
        if earlier is not None:
            requests = joined(earlier, requests, freeze)
        parts, choice = _operate(structure, requests, freeze, backward, allow_bypass, why, rows)
        flags = [(m, m.training) for m in model.modules()]
        aug = _build(parts, backward, choice)
    if dry_run:
        for module, flag in flags:  # frozen norms went to eval mode
            module.training = flag
        return aug.plan
    if parts.plan.freeze is not None:
        for name in parts.plan.freeze.parameters:
            model.get_parameter(name).requires_grad_(False)
    return aug


def _operate(
    structure: ModelStructure,
    requests: Sequence[Request],
    freeze: str | None,
    backward: str,
    allow_bypass: bool,
    why: str,
    rows: int | None,
) -> tuple[Parts, Choice]:
    """Capture, insert, prove that the cuts separate, and choose a backward; the model itself is only read."""
    model = structure.model
    names = fresh_names(model, [r.target for r in requests])
    captured, graph, placed = place(structure, names, training=True)
    inside: frozenset[str] = frozenset()
    if backward == "sparse":
        inside = norms_to_open(graph, list(placed.values()), model)
        captured, graph, placed = place(structure, names, training=True, inside=inside)
    notes = check_sites(captured, graph, placed, allow_bypass)
    frozen = None if freeze is None else freeze_pass(graph, list(placed.values()), model, freeze)

    eval_captured, eval_graph = place_eval(structure, names, graph, inside)
    constants = constants_module({**captured.constants, **eval_captured.constants})
    cuts = [placed[r.target] for r in requests]
    samples = find_samples(model, graph, cuts, structure.signature.examples, captured.constants, rows)
    choice = choose(
        backward,
        Surgery(
            structure,
            captured,
            lambda other: place(other, names, training=True, inside=inside)[:2],
            graph,
            cuts,
            requests,
            samples,
            bypass=next((note.removeprefix(BYPASSED) for note in notes.values() if note != SEPARATES), ""),
            frozen=frozenset() if frozen is None else frozenset(frozen.parameters),
        ),
    )
    shares = {r.target: flop_share(graph, placed[r.target]) for r in requests if structure.count_flops}
    plan = Plan(
        model=structure.name,
        sites=tuple(
            PlannedSite(
                r, names[r.target], notes[r.target], shape, shares.get(r.target), place.describe(shape)
            )
            for r, place in zip(requests, samples.places, strict=True)
            for shape in [_shape(placed[r.target])]
        ),
        nodes=len(graph.nodes),
        opened=tuple(sorted(captured.opened - {""})),
        two_graphs=eval_graph is not None,
        backward=choice.kind,
        reason=choice.reason,
        freeze=frozen,
        assumptions=tuple(map(str, captured.assumptions)),
        notes=(
            *filter(None, [why, structure.guess_note, samples.note]),
            *_placement_notes(requests, placed),
            *_state_notes(captured),
            *_method_notes(model),
        ),
    )
    added = _augmentations(model, [names[r.target] for r in requests], requests, samples.places)
    facts = {True: captured.facts, False: eval_captured.facts}
    parts = Parts(
        model, graph, eval_graph, {**added, **constants}, structure.signature, plan, choice.split, facts=facts
    )
    parts.runs_original = not writes_into_inputs(graph if eval_graph is None else eval_graph)
    return parts, choice


def _augmentations(
    model: nn.Module, names: Sequence[str], requests: Sequence[Request], places: Sequence[Rows]
) -> dict[str, nn.Module]:
    """The modules that act at the sites, on the model's device."""
    device = next((p.device for p in model.parameters()), None)
    made = [augmentation_of(r, place).to(device) for r, place in zip(requests, places, strict=True)]
    return dict(zip(names, made, strict=True))


def _build(parts: Parts, backward: str, choice: Choice) -> AugmentedModule:
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
    if choice.split is not None:
        against = probe_split(aug, choice.split, signature, choice.proved)
        if against and backward in ("sparse", "proved"):
            site = parts.plan.sites[0].request.target
            raise SparseBackwardError(
                f"backward='{backward}' is not possible at '{site}': {against}. Use 'dense'."
            )
        if against:
            parts.split = None
            parts.plan = dataclasses.replace(parts.plan, backward="dense", reason=against)
    return aug


def strip(aug: nn.Module) -> nn.Module:
    """Take Deep Augmentation out again.

    Args:
        aug: a model made by `rewrite`.

    Returns:
        The very model that was rewritten, with its trained weights; what ``freeze`` froze is trainable again.

    Raises:
        NotRewritten: ``aug`` was not made by `rewrite`.
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


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    shape = getattr(value_of(node), "shape", None)
    return None if shape is None else tuple(shape)


def _placement_notes(requests: Sequence[Request], placed: Mapping[Target, fx.Node]) -> list[str]:
    notes = []
    for request in requests:
        shape = _shape(placed[request.target])
        if shape is not None and len(shape) == 4 and request.granularity != "element":
            notes.append(
                f"'{request.target}': channels are taken to be dimension 1 of {'×'.join(map(str, shape))}"
            )
        if request.stop_grad and _is_input(request.target):
            notes.append("stop_grad at the input stops nothing that is trained")
    return notes


def _state_notes(captured: Captured) -> list[str]:
    names = ", ".join(captured.assigned)
    return [f"the forward sets {names} in every call; the rewritten model does not"] if names else []


def _method_notes(model: nn.Module) -> list[str]:
    names = ", ".join(running_methods(model))
    return [f"called by themselves, these run the model without augmentation: {names}"] if names else []


def _is_input(target: Target) -> bool:
    return target.path == "" and target.op is None and target.side == "before"
