"""Where the targets lie in a model's graph: captured as far as they need, with a module called at each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import fx, nn

from graphaug.capture.capture import Captured
from graphaug.capture.target import Target
from graphaug.select.model_structure import ModelStructure
from graphaug.select.nodes import find_node
from graphaug.surgery.insert import insert


def call_of(target: Target) -> Target:
    """The target with its call spelled out."""
    return dataclasses.replace(target, call=target.call or 0)


def fresh_names(model: nn.Module, targets: Iterable[Target], stem: str = "deep_augment") -> dict[Target, str]:
    """A name that the model has not given, for the module that acts at each target."""
    names: dict[Target, str] = {}
    for target in targets:
        number = len(names)
        while True:
            name = f"{stem}_{number}" if number else stem
            if not hasattr(model, name) and name not in names.values():
                break
            number += 1
        names[target] = name
    return names


def place(
    structure: ModelStructure,
    names: Mapping[Target, str],
    *,
    training: bool,
    inside: frozenset[str] = frozenset(),
    resized: frozenset[Target] = frozenset(),
    whole: bool = True,
) -> tuple[Captured, fx.Graph, dict[Target, fx.Node]]:
    """Capture the model as far as the targets need, and insert the modules that act there.

    Behind the ``resized`` ones sizes are others than before, so they are read there. Without ``whole`` a site that
    returns several tensors, of which the model goes on with one, is that one.
    """
    opened = {
        a for t in names for a in [*structure.around(t.path), *([t.path] if t.op is not None else [])]
    } | inside
    functions = frozenset(t.path for t in names if structure.is_inside_function(t))
    while True:  # a site may be the output of a module that has to be opened with these
        marks = frozenset(call_of(t) for t in names if t.op is None and t.path and t.path in opened)
        captured = structure.capture(opened, training=training, marks=marks, open_functions=functions)
        if captured.opened <= opened | {""}:
            break
        opened |= captured.opened
    if not training:
        names = {t: name for t, name in names.items() if find_node(captured, t) is not None}
    graph, placed = insert(captured, names, resized, whole=whole)
    return captured, graph, placed


def place_eval(
    structure: ModelStructure,
    names: Mapping[Target, str],
    graph: fx.Graph,
    inside: frozenset[str],
    resized: frozenset[Target] = frozenset(),
    whole: bool = True,
) -> tuple[Captured, fx.Graph | None]:
    """The capture of eval mode, and its graph if that differs from the one of training mode."""
    captured, eval_graph, _ = place(
        structure, names, training=False, inside=inside, resized=resized, whole=whole
    )
    if _source(eval_graph) == _source(graph):
        return dataclasses.replace(captured, constants={}), None
    # constants are numbered per capture: keep the two sets apart
    renamed = {name: f"eval_{name}" for name in captured.constants}
    for node in eval_graph.nodes:
        if node.op == "get_attr" and str(node.target).rpartition(".")[2] in renamed:
            prefix, _, name = str(node.target).rpartition(".")
            if prefix == "graphaug_constants":
                node.target = f"{prefix}.{renamed[name]}"
    constants = {renamed[name]: value for name, value in captured.constants.items()}
    return dataclasses.replace(captured, constants=constants), eval_graph


def _source(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)
