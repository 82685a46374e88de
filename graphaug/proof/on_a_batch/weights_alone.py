"""What a forward makes of its weights alone, a penalty for one: its gradient comes to them through no sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, fx

from graphaug.capture.dataflow import reads, reads_metadata
from graphaug.capture.held import tensors_of
from graphaug.capture.interpreter import Interpreter
from graphaug.capture.values import value_of
from graphaug.surgery.module import AugmentedModule


@contextlib.contextmanager
def noted_alone(aug: AugmentedModule) -> Iterator[list[Any]]:
    """The nodes of gradient graphs of what calls in this block make of weights alone, noted as they come about.

    The graph is interpreted, and only if there is something of the kind in it.
    """
    graph = aug._parts.training_graph
    noted: list[Any] = []
    alone = of_weights_alone(graph)

    class Noting(Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in alone:  # now: what is written into it later may be of a sample
                noted.extend(t.grad_fn for t in tensors_of(result) if t.grad_fn is not None)
            return result

    def forward(**values: Any) -> Any:
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        run = Noting(aug, garbage_collect_values=False, graph=graph).run
        return run(*[values.get(str(n.target), *n.args) for n in inputs])

    if alone:
        aug.__dict__["_forward_training"] = forward
    try:
        yield noted
    finally:
        aug.__dict__.pop("_forward_training", None)


def of_weights_alone(graph: fx.Graph) -> set[fx.Node]:
    """The operations of torch on tensors that the model owns, which no input reaches but by its sizes.

    What is closed, and objects, may keep something of a sample that no graph shows, and count as reached.
    """
    reached: set[fx.Node] = set()
    for node, inputs in reads(graph).items():
        owned = node.op == "get_attr" and isinstance(value_of(node), Tensor)
        if not (owned or _of_torch(node)) or (not reads_metadata(node) and any(n in reached for n in inputs)):
            reached.add(node)
    return {n for n in graph.nodes if n.op in ("call_function", "call_method") and n not in reached}


def _of_torch(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op == "call_method"
    module = getattr(node.target, "__module__", None) or "torch"  # its C functions have none
    return module.split(".")[0] in ("torch", "_operator", "builtins", "math")


def gradient_graph(nodes: Iterable[Any]) -> set[Any]:
    """The nodes of a gradient graph, and all that their gradients pass."""
    found: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found
