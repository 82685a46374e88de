"""The operation behind a rewrite: capture, insert, prove, choose a backward, build; the model itself is only read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from graphaug.augment.rows import Rows
from graphaug.augment.site import Augmentation
from graphaug.capture.capture import Captured, relied_on
from graphaug.capture.dataflow import writes_into_inputs
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption, SparseBackwardError
from graphaug.proof.in_place import check_in_place
from graphaug.proof.independence.samples import Samples, check_given, find_samples
from graphaug.proof.independence.told import told_samples
from graphaug.proof.separation import BYPASSED, SEPARATES, check_sites
from graphaug.proof.shadow.faithful import as_captured, check_faithful
from graphaug.select.model_structure import ModelStructure
from graphaug.sparse.choose import Choice, Surgery, choose, norms_to_open
from graphaug.sparse.saving import flop_share
from graphaug.sparse.tokens.follow import with_tokens
from graphaug.sparse.tokens.sizes import check_sizes
from graphaug.sparse.trial import check_split
from graphaug.sparse.views import view_choice, view_notes, with_views
from graphaug.surgery.freeze import Frozen
from graphaug.surgery.freeze import freeze as freeze_pass
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import fresh_names, place, place_eval
from graphaug.surgery.plan import Asked, Plan, Request
from graphaug.surgery.planned import notes_of, notes_of_rows, planned_sites
from graphaug.surgery.requests import augmentation_of, take_turns
from graphaug.surgery.rewritten.frozen import FrozenRegion
from graphaug.surgery.rewritten.parts import Parts, constants_module


@dataclass(frozen=True)
class Operation:
    """A model as it is to be built.

    Attributes:
        parts: what it consists of, its plan among them.
        choice: its backward.
        viewed: of deep views and fewer tokens, the training graph that takes the place of the one that is compared
            with the model.
    """

    parts: Parts
    choice: Choice
    viewed: fx.Graph | None


@dataclass(frozen=True)
class Inserted:
    """A model's graphs with the augmentations in them.

    Attributes:
        names: of the modules at the targets.
        captured: of training mode.
        eval_captured: of eval mode.
        graph: of training mode.
        eval_graph: of eval mode, where it differs.
        placed: the augmentations' nodes in ``graph``.
        notes: what there is to say of every site.
        frozen: what a freeze acts on.
        again: captures and inserts once more, for another example.
    """

    names: Mapping[Target, str]
    captured: Captured
    eval_captured: Captured
    graph: fx.Graph
    eval_graph: fx.Graph | None
    placed: Mapping[Target, fx.Node]
    notes: Mapping[Target, str]
    frozen: Frozen | None
    again: Any


def operate(structure: ModelStructure, requests: Sequence[Request], asked: Asked, why: str) -> Operation:
    """Make of a model and what is requested of it what is to be built.

    Args:
        structure: the model and its example.
        requests: the sites and their options.
        asked: the options of the whole model.
        why: why the site was advised, or an empty string.

    Raises:
        GraphaugError: as `graphaug.rewrite` says.
    """
    made = _insert(structure, requests, asked)
    samples = _samples(structure, made, requests, asked)
    around = next((n.removeprefix(BYPASSED) for n in made.notes.values() if n != SEPARATES), "")
    surgery = Surgery(
        structure,
        made.captured,
        made.again,
        made.graph,
        [made.placed[r.target] for r in requests],
        requests,
        samples,
        bypass=around,
        frozen=frozenset() if made.frozen is None else frozenset(made.frozen.parameters),
    )
    choice, viewed, shared = _choose(asked, surgery)
    augmentations = _augmentations(structure.model, made.names, requests, samples.places, asked.views)
    if not structure.signature.guessed and not isinstance(asked.rows, str):
        rows = (1 if structure.signature.doubled else samples.count) * asked.views
        at = zip((r.target for r in requests), augmentations.values(), strict=True)
        shared = [*shared, *notes_of_rows(at, rows)]
    plan = _plan(surgery, made, choice, asked, why, shared, two=viewed is not None)
    if asked.one_site:
        take_turns(augmentations, made.graph)
    constants = constants_module({**made.captured.constants, **made.eval_captured.constants})
    if any(r.resizes for r in requests) and asked.views == 1:
        check_sizes(surgery, viewed or made.graph, {**augmentations, **constants})
    parts = Parts(
        structure.model,
        made.graph,
        made.eval_graph,
        {**augmentations, **constants},
        structure.signature,
        plan,
        choice.split,
        facts=relied_on(made.captured, made.eval_captured),
        frozen=FrozenRegion.of(made.graph, made.frozen, structure.model),
    )
    parts.runs_original = True
    parts.writes_into_inputs = writes_into_inputs(made.eval_graph or made.graph)
    parts.row_dims = samples.by_input(structure.signature.examples)
    return Operation(parts, choice, viewed)


def _insert(structure: ModelStructure, requests: Sequence[Request], asked: Asked) -> Inserted:
    """Capture both modes, insert the augmentations, and prove that the cuts separate."""
    model = structure.model
    names = fresh_names(model, [r.target for r in requests])
    resized = frozenset(r.target for r in requests if r.resizes)
    inside: frozenset[str] = frozenset()
    captured, graph, placed = place(structure, names, training=True, resized=resized, whole=False)
    if asked.backward == "sparse":
        inside = norms_to_open(graph, list(placed.values()), model)
        captured, graph, placed = place(
            structure, names, training=True, inside=inside, resized=resized, whole=False
        )
    notes = check_sites(captured, graph, placed, asked.allow_bypass)
    check_in_place(captured, graph, placed.items())
    frozen = None if asked.freeze is None else freeze_pass(graph, list(placed.values()), model, asked.freeze)
    eval_captured, eval_graph = place_eval(structure, names, graph, inside, resized, whole=False)

    def again(other: ModelStructure) -> tuple[Captured, fx.Graph]:
        return place(other, names, training=True, inside=inside, resized=resized, whole=False)[:2]

    return Inserted(names, captured, eval_captured, graph, eval_graph, placed, notes, frozen, again)


def _samples(structure: ModelStructure, made: Inserted, requests: Sequence[Request], asked: Asked) -> Samples:
    """Where the samples lie at the cuts.

    Raises:
        InvalidOption: ``rows`` is not of this example or these transforms, or samples cannot be told.
    """
    check_given(asked.rows, structure.signature.guessed)
    if isinstance(asked.rows, str) and (asked.views > 1 or any(r.transform is not None for r in requests)):
        raise InvalidOption(
            f"rows={asked.rows!r} tells samples of any size, for which dropout alone is defined: leave transform= and "
            "views= out."
        )
    cuts = [made.placed[r.target] for r in requests]
    find: Any = told_samples if isinstance(asked.rows, str) else find_samples
    examples, constants = structure.signature.examples, made.captured.constants
    found: Samples = find(structure.model, made.graph, cuts, examples, constants, asked.rows)
    return found


def _plan(
    surgery: Surgery,
    made: Inserted,
    choice: Choice,
    asked: Asked,
    why: str,
    shared: Sequence[str],
    *,
    two: bool,
) -> Plan:
    """The plan; ``shared``: notes on views and tokens, ``two``: whether they have a training graph of their own."""
    structure, requests, samples = surgery.structure, surgery.requests, surgery.samples
    counted = requests if structure.count_flops else ()
    shares = {r.target: flop_share(made.graph, made.placed[r.target]) for r in counted}
    doubled = ["the example has one row, which was taken twice"] if structure.signature.doubled else []
    return Plan(
        model=structure.name,
        sites=planned_sites(requests, made.names, made.placed, samples.places, made.notes, shares),
        nodes=len(made.graph.nodes),
        opened=tuple(sorted(made.captured.opened - {""})),
        two_graphs=made.eval_graph is not None or two,
        backward=choice.kind,
        reason=choice.reason,
        freeze=made.frozen,
        assumptions=tuple(map(str, made.captured.assumptions)),
        notes=(
            *filter(None, [why, *structure.notes, samples.note]),
            *notes_of(structure.model, made.captured, requests, made.placed),
            *shared,
            *doubled,
        ),
        asked=asked,
    )


def _choose(asked: Asked, surgery: Surgery) -> tuple[Choice, fx.Graph | None, list[str]]:
    """The backward; of deep views and fewer tokens their training graph, and what a user should know of it."""
    following, notes = with_tokens(surgery) if any(r.resizes for r in surgery.requests) else (None, [])
    if asked.views == 1:
        return choose(asked.backward, surgery), following, notes
    if following is not None:
        raise InvalidOption(
            f"views={asked.views} with a transform that drops tokens: {notes[0].partition(': ')[2]}, which is not done "
            "for several views. Leave views= out, or choose a site behind which nothing follows."
        )
    viewed = with_views(surgery, asked.views)
    return (
        view_choice(asked.backward, surgery, viewed),
        viewed.graph,
        [*notes, *view_notes(surgery, viewed)],
    )


def _augmentations(
    model: nn.Module,
    names: Mapping[Target, str],
    requests: Sequence[Request],
    places: Sequence[Rows],
    views: int,
) -> dict[str, Augmentation]:
    """The modules that act at the sites, on the model's device, where every row has so many views."""
    device = next((p.device for p in model.parameters()), None)
    made = [augmentation_of(r, place).to(device) for r, place in zip(requests, places, strict=True)]
    for augmentation in made if views > 1 else ():
        augmentation.copies = views
    return dict(zip([names[r.target] for r in requests], made, strict=True))


def build(operation: Operation) -> AugmentedModule:
    """Build the model, and check what can only be checked by running it: its outputs, its rows.

    Raises:
        CaptureError: it does not compute what the original computes.
        SparseBackwardError: rows depend on each other, and ``backward="sparse"`` was asked for.
    """
    parts, choice, backward = operation.parts, operation.choice, operation.parts.plan.asked.backward
    signature = parts.signature
    parts.signature = signature.forget_examples()
    aug = AugmentedModule(parts)
    note = check_faithful(parts.model, as_captured(aug), signature)
    if note:
        parts.plan = dataclasses.replace(parts.plan, notes=(*parts.plan.notes, note))
    if operation.viewed is not None:  # what was compared is the graph of the rows as they come in
        parts.eval_graph = parts.training_graph if parts.eval_graph is None else parts.eval_graph
        parts.training_graph = operation.viewed
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
