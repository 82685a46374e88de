"""A model captured with marks at some of its sites, and compared with the original: where other verbs begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from graphaug.capture.capture import Captured, relied_on
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.recording.relied.facts import Relied
from graphaug.capture.target import Target
from graphaug.proof.shadow.faithful import CapturedModel, check_faithful
from graphaug.select.model_structure import ModelStructure
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import fresh_names, place, place_eval
from graphaug.surgery.plan import Plan
from graphaug.surgery.rewritten.parts import Parts, constants_module


@dataclass(frozen=True)
class Marked:
    """A model's graphs with a call of a module that does not exist at every target.

    Attributes:
        structure: the model.
        names: target -> name of the module that is called there.
        captured: of training mode.
        graph: of training mode.
        eval_graph: of eval mode, where it differs.
        placed: the calls in ``graph``.
        constants: the child that holds constants, by its name.
        signature: the inputs, without their examples.
        plan: without sites.
        facts: what the graphs rely on besides their inputs.
    """

    structure: ModelStructure
    names: Mapping[Target, str]
    captured: Captured
    graph: fx.Graph
    eval_graph: fx.Graph | None
    placed: Mapping[Target, fx.Node]
    constants: Mapping[str, nn.Module]
    signature: Signature
    plan: Plan
    facts: Mapping[bool, tuple[Relied, ...]]

    def module(
        self,
        graph: fx.Graph,
        eval_graph: fx.Graph | None,
        added: Mapping[str, nn.Module],
        plan: Plan,
        row_dims: Mapping[str, Sequence[int | None]] | None = None,
    ) -> AugmentedModule:
        """A module that runs these graphs, changed, with modules added; see `Parts` for the rest."""
        parts = Parts(
            self.structure.model,
            graph,
            eval_graph,
            {**added, **self.constants},
            self.signature,
            plan,
            facts=self.facts,
            row_dims=row_dims or {},
            targets={name: target for target, name in self.names.items()},
        )
        return AugmentedModule(parts)

    def examples(self) -> Mapping[str, Any]:
        """The example inputs by name, given or made up."""
        return self.structure.signature.examples


def mark(structure: ModelStructure, targets: Sequence[Target], stem: str) -> Marked:
    """Capture a model with marks, in both modes, and compare it with the original.

    Args:
        structure: the model.
        targets: where the marks are.
        stem: what their names begin with; it is the purpose that the plan tells, too.

    Raises:
        CaptureError: it cannot be captured, or does not compute what the original computes.
        SiteNotFound: the graph has no such site.
    """
    names = fresh_names(structure.model, targets, stem)
    captured, graph, placed = place(structure, names, training=True)
    eval_captured, eval_graph = place_eval(structure, names, graph, frozenset())
    plan = Plan(
        model=structure.name,
        sites=(),
        nodes=len(graph.nodes),
        opened=tuple(sorted(captured.opened - {""})),
        two_graphs=eval_graph is not None,
        backward="dense",
        reason="no augmentation",
        assumptions=tuple(map(str, captured.assumptions)),
        purpose=stem,
    )
    marked = Marked(
        structure,
        names,
        captured,
        graph,
        eval_graph,
        placed,
        constants_module({**captured.constants, **eval_captured.constants}),
        structure.signature.forget_examples(),
        plan,
        relied_on(captured, eval_captured),
    )
    identities: dict[str, nn.Module] = {name: nn.Identity() for name in names.values()}
    whole = marked.module(graph, eval_graph, identities, plan)
    calls = {
        mode: frozenset(str(n.target) for n in used.nodes if n.op == "call_module") - identities.keys()
        for mode, used in ((True, graph), (False, eval_graph or graph))
    }
    compared = CapturedModel(whole, plan.opened, calls, identities, eval_graph is None)
    check_faithful(structure.model, compared, structure.signature)
    return marked
