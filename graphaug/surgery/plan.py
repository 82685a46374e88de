"""What a rewrite does and why: the value behind ``aug.plan`` and ``dry_run=True``."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphaug.capture.target import Target
from graphaug.surgery.freeze import Frozen


@dataclass(frozen=True)
class Request:
    """One site and what the augmentation does there."""

    target: Target
    rate: float
    subset: float
    stop_grad: bool
    sampling: str
    granularity: str
    pairing: str

    def __str__(self) -> str:
        stop = ", gradient of augmented rows stopped" if self.stop_grad else ""
        side = ", first view only" if self.pairing == "one-sided" else ""
        return (
            f"dropout {self.rate:g} per {self.granularity} on {self.subset:.0%} of the rows "
            f"({self.sampling}){side}{stop}"
        )


@dataclass(frozen=True)
class PlannedSite:
    """A request as it was placed.

    Attributes:
        request: the site and its options.
        module: name of the augmentation's module in the rewritten model.
        note: what else there is to know of it ("bypassed: 'add' also receives …").
        shape: shape of the value on the example, if there was one.
        flops_before: share of the forward FLOPs up to the site, in [0, 1], if they were counted.
        rows: where the rows, which are samples, lie in the value, in words.
    """

    request: Request
    module: str
    note: str
    shape: tuple[int, ...] | None = None
    flops_before: float | None = None
    rows: str = "dimension 0"


@dataclass(frozen=True)
class Plan:
    """What was done to a model and why; ``print`` it.

    Attributes:
        model: class name of the model.
        sites: where the augmentation acts, in graph order of the selectors.
        nodes: size of the captured graph.
        opened: paths of the modules that were traced through.
        two_graphs: whether training and eval mode have graphs of their own.
        backward: "dense" or "sparse".
        reason: why this backward.
        freeze: what is frozen, or None.
        assumptions: facts about the inputs that the graph relies on and checks in every call.
        notes: anything a user should know.
    """

    model: str
    sites: tuple[PlannedSite, ...]
    nodes: int
    opened: tuple[str, ...]
    two_graphs: bool
    backward: str
    reason: str
    freeze: Frozen | None = None
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        graphs = "two graphs, for training and eval mode" if self.two_graphs else "one graph for both modes"
        rows = [
            (
                "captured",
                f"{self.nodes} nodes, {graphs}; opened: {', '.join(self.opened) or 'the model only'}",
            )
        ]
        for site in self.sites:
            rows.append(("site", f"{site.request.target}  (as {site.module})"))
            rows.append(("", str(site.request)))
            rows.append(("", site.note))
            if site.shape is not None:
                rows.append(("", "value " + "×".join(map(str, site.shape))))
            rows.append(("", f"rows: {site.rows}"))
        rows.append(("backward", f"{self.backward}: {self.reason}"))
        if self.freeze is not None:
            where = "up to and including the cut" if self.freeze.side == "before" else "behind the cut"
            rows.append(("freeze", f"{len(self.freeze.parameters)} parameters {where}"))
            if self.freeze.modules:
                rows.append(("", f"{len(self.freeze.modules)} modules keep their running statistics"))
        rows += [("assumes" if i == 0 else "", text) for i, text in enumerate(self.assumptions)]
        rows += [("note", text) for text in self.notes]
        return "\n".join([f"Deep Augmentation of {self.model}", *(f"  {k:<9} {text}" for k, text in rows)])
