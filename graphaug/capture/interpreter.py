"""Runs a graph node by node as its generated code does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from graphaug.capture.regions import put_back_on_error


class Interpreter(fx.Interpreter):
    """An `fx.Interpreter` that hands on lists and dicts as code does: new ones, which a module may write into.

    Those of a graph's arguments cannot be changed, and some forwards fill the list that they are given (HRNet).
    """

    def run(self, *args: Any, **options: Any) -> Any:
        """Run the graph; if it raises, the modes that it has set are put back."""
        with put_back_on_error():
            return super().run(*args, **options)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a node."""
        return filled(n, self.env)


def filled(n: fx.Node, env: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node, with the values of other nodes in their places."""
    args, kwargs = fx.node.map_arg((n.args, n.kwargs), env.__getitem__)
    return tuple(map(_own, args)), {key: _own(value) for key, value in kwargs.items()}


def _own(value: Any) -> Any:
    if isinstance(value, fx.immutable_collections.immutable_list):
        return [_own(v) for v in value]
    if isinstance(value, fx.immutable_collections.immutable_dict):
        return {key: _own(v) for key, v in value.items()}
    return tuple(map(_own, value)) if type(value) is tuple else value
