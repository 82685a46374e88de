"""The plan of a rewrite: what was placed where, and what a user should know of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx, nn

from graphaug.augment.rows import Rows
from graphaug.augment.site import Augmentation, none_augmented
from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import before, carries_gradient, needed, nodes_in, parameters_of
from graphaug.capture.target import Target
from graphaug.capture.values import value_of
from graphaug.surgery.methods import running_methods
from graphaug.surgery.plan import PlannedSite, Request


def planned_sites(
    requests: Sequence[Request],
    names: Mapping[Target, str],
    placed: Mapping[Target, fx.Node],
    places: Sequence[Rows],
    notes: Mapping[Target, str],
    shares: Mapping[Target, float],
) -> tuple[PlannedSite, ...]:
    """Every request as it was placed.

    Args:
        requests: the sites and their options.
        names: of the augmentations' modules.
        placed: their nodes.
        places: where the rows lie, in the order of the requests.
        notes: what else there is to say of a site.
        shares: of the forward FLOPs up to a site, where they were counted.
    """
    return tuple(
        PlannedSite(
            r,
            names[r.target],
            notes[r.target],
            shape,
            shares.get(r.target),
            place.describe(shape),
            placed[r.target].meta.get("entry", ()),
        )
        for r, place in zip(requests, places, strict=True)
        for shape in [_shape(placed[r.target])]
    )


def notes_of(
    model: nn.Module, captured: Captured, requests: Sequence[Request], placed: Mapping[Target, fx.Node]
) -> list[str]:
    """What a user should know of a model and what is put into it."""
    return [
        *_placement_notes(requests, placed),
        *_state_notes(captured),
        *_kept_notes(model, placed),
        *_mode_notes(model),
        *_method_notes(model),
        *_lightning_notes(model, requests[0].target),
    ]


def notes_of_rows(augmentations: Iterable[tuple[Target, Augmentation]], rows: int) -> list[str]:
    """Of which sites no row of an example of so many would be augmented, because of rounding."""
    said = ((target, none_augmented(augmentation, rows)) for target, augmentation in augmentations)
    return [f"'{target}': {none} in a batch like the example" for target, none in said if "rounds" in none]


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    shape = getattr(value_of(node), "shape", None)
    return None if shape is None else tuple(shape)


def _placement_notes(requests: Sequence[Request], placed: Mapping[Target, fx.Node]) -> list[str]:
    notes = []
    for request in requests:
        shape, transform = _shape(placed[request.target]), request.transform
        if shape is not None and len(shape) == 4 and request.granularity != "element" and transform is None:
            notes.append(
                f"'{request.target}': channels are taken to be dimension 1 of {'×'.join(map(str, shape))}"
            )
        if request.stop_grad and _is_input(request.target):
            notes.append("stop_grad at the input stops nothing that is trained")
        if transform is not None and any(p.requires_grad for p in transform.parameters()):
            stopped = ", and stop_grad stops its gradient too" if request.stop_grad else ""
            notes.append(
                f"'{request.target}': the transform's own parameters are in the state_dict of this model{stopped}"
            )
    return notes


def _state_notes(captured: Captured) -> list[str]:
    notes = []
    if names := ", ".join(captured.assigned):
        notes.append(f"the forward sets {names} in every call; the rewritten model does not")
    if names := ", ".join(captured.unwatched):
        notes.append(f"not compared in every call, so call rewrite again after a change: {names}")
    if lines := ", ".join(captured.prints):
        notes.append(
            f"what the forward prints or logs ({lines}) the graph does not, in training mode: call the model itself"
        )
    if lines := ", ".join(captured.asks):
        notes.append(
            f"what the forward asks of the system, or writes to files ({lines}), the graph does not, in training mode: "
            "call rewrite again after a change"
        )
    return notes


def _kept_notes(model: nn.Module, placed: Mapping[Target, fx.Node]) -> list[str]:
    """Of what the forward keeps for a loss, which is no output: that it may pass its gradient around a site."""
    sets = [n for n in next(iter(placed.values())).graph.nodes if n.target is setattr]
    notes = []
    for target, cut in placed.items() if sets else ():
        own = (n for n in before(cut) if not n.meta.get("augmentation"))  # of the model, not of a site
        trained = {n for n in own if parameters_of(n, model.get_submodule, model.get_parameter)}
        for node in sets:
            kept = [n for n in nodes_in(node.args[2]) if carries_gradient(value_of(n))]
            if not trained.isdisjoint(needed(kept, {cut})):
                name = node.meta.get("assigned", f"'{node.args[1]}'")
                notes.append(
                    f"'{target}': what {name} is set to{node.meta.get('line', '')} is computed beside the site, and "
                    "a loss that is taken of it has its gradient below the cut"
                )
    return notes


def _mode_notes(model: nn.Module) -> list[str]:
    return (
        []
        if model.training
        else ["the model is in eval mode, in which nothing is augmented: call train() first"]
    )


def _method_notes(model: nn.Module) -> list[str]:
    names = ", ".join(running_methods(model))
    return [f"called by themselves, these run the model without augmentation: {names}"] if names else []


def _is_input(target: Target) -> bool:
    return target.path == "" and target.op is None and target.side == "before"


def _lightning_notes(model: nn.Module, target: Target) -> list[str]:
    if not any(cls.__name__ == "LightningModule" for cls in type(model).__mro__):
        return []
    part, _, rest = target.path.partition(".")
    where = f", at={rest!r}" if rest else ""
    return [
        "what comes back is no LightningModule, and no Trainer takes it: rewrite what it trains, in its __init__, as "
        f"self.{part or 'backbone'} = graphaug.rewrite(self.{part or 'backbone'}{where}, …)"
    ]
