"""A graph in the hands of another tracer, which runs what sets a mode of torch or asserts, and keeps no node of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves

from graphaug.capture.recording.checks import ASSERTIONS, assert_number
from graphaug.capture.recording.values.layouts import TELL
from graphaug.capture.regions import IS_GRAD_ENABLED, SETS_A_MODE
from graphaug.capture.values import assume
from graphaug.surgery.rewritten.aliases import speakable

_CHECKS = (assume, *TELL)
"""What checks that a call is one that the graph holds for; of a proxy it cannot be told."""


def loses_nodes(graph: fx.Graph) -> bool:
    """Whether another tracer would lose nodes of a graph: those that set a mode, or assert what no proxy tells."""
    kept = {*SETS_A_MODE, *_CHECKS, assert_number}
    return any(node.target in kept for node in graph.nodes if node.op == "call_function")


def retraced(aug: Any, graph: fx.Graph, values: Mapping[str, Any], tracer: Any) -> Any:
    """Run a graph on proxies, with nodes for what sets a mode.

    Args:
        aug: the rewritten model.
        graph: one of its graphs.
        values: the inputs by name, proxies or plain.
        tracer: of the proxies.
    """
    graph = speakable(graph, type(aug), aug._aliases)
    given = [values.get(str(n.target), *n.args) for n in graph.nodes if n.op == "placeholder"]
    return _Retraced(aug, graph, tracer).run(*given)


class _Retraced(fx.Interpreter):
    def __init__(self, aug: Any, graph: fx.Graph, tracer: Any) -> None:
        super().__init__(aug, garbage_collect_values=False, graph=graph)
        self.tracer, self.extra_traceback = tracer, False

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in SETS_A_MODE or target is IS_GRAD_ENABLED or target in ASSERTIONS:
            return self.tracer.create_proxy("call_function", target, args, kwargs)
        if target in _CHECKS and any(isinstance(v, fx.Proxy) for v in tree_leaves((args, kwargs))):
            return self.tracer.create_proxy("call_function", target, args, kwargs)
        return super().call_function(target, args, kwargs)
