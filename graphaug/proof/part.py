"""A part of a graph, run on a model's own modules up to the values that are asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.dataflow import before
from graphaug.capture.interpreter import Interpreter, filled
from graphaug.capture.names import CONSTANTS
from graphaug.capture.regions import put_back_on_error
from graphaug.capture.values import assume
from graphaug.proof.equivalence import plain_containers


def inputs_of(graph: fx.Graph, examples: Mapping[str, Any]) -> dict[str, Any]:
    """An example for every input of a graph; what was not given has its default."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    default = {str(n.target): n.args[0] if n.args else None for n in placeholders}
    return {name: examples.get(name, default[name]) for name in default}


def cut_input(cut: fx.Node) -> fx.Node:
    """The value that enters an augmentation."""
    return cut.all_input_nodes[0] if cut.meta.get("augmentation") else cut


class Run(Interpreter):
    """Runs a part of a graph on a model's own modules, its augmentations doing nothing."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        needed: set[fx.Node],
        ends: Sequence[fx.Node] | None,
        constants: Mapping[str, Any],
    ) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.needed, self.ends, self.constants = needed, ends, constants

    @staticmethod
    def up_to(
        model: nn.Module, graph: fx.Graph, ends: Sequence[fx.Node] | None, constants: Mapping[str, Any]
    ) -> Run:
        """The part that some values are computed from, or all of it."""
        needed = set(graph.nodes) if ends is None else set[fx.Node]().union(*map(before, ends))
        return Run(model, graph, needed, ends, constants)

    def __call__(self, values: dict[str, Any]) -> list[Any]:
        """The first tensor of every end."""
        env: dict[fx.Node, Any] = {}
        with put_back_on_error():
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    env[node] = values[str(node.target)]
                elif node.op == "output" or node.target is assume:
                    continue
                elif node in self.needed and node.meta.get("augmentation"):
                    env[node] = env[node.all_input_nodes[0]]
                elif node in self.needed:
                    args, kwargs = filled(node, env)
                    env[node] = getattr(self, node.op)(node.target, args, kwargs)
        if self.ends is not None:
            return [_first(env[end]) for end in self.ends]
        (output,) = (n for n in self.graph.nodes if n.op == "output")
        returned = fx.node.map_arg(output.args[0], env.__getitem__)
        leaves = torch.utils._pytree.tree_leaves(plain_containers(returned))
        return [t for t in leaves if isinstance(t, Tensor) and t.dim() > 0]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter, a buffer or a constant."""
        room, _, name = str(target).rpartition(".")
        return self.constants[name] if room == CONSTANTS else super().get_attr(target, args, kwargs)


def _first(value: Any) -> Any:
    """The tensor that an augmentation acts on: a value, or its first entry."""
    while not isinstance(value, Tensor):
        if isinstance(value, Mapping):
            value = next(iter(value.values()), None)
        elif isinstance(value, (tuple, list)) and value:
            value = value[0]
        else:
            return value
    return value
