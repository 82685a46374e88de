"""Whether what lies behind a site takes fewer tokens: its graph runs once on fakes, and every size is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.augment.site import Augmentation
from graphaug.capture.interpreter import Interpreter
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.state import unchanged, undrawn
from graphaug.capture.values import describe, value_of
from graphaug.errors import InvalidOption
from graphaug.sparse.choose import Surgery
from graphaug.sparse.tokens.follow import token_dim
from graphaug.surgery.called.tokens import followed, shortened
from graphaug.torch_private import FakeTensorMode, quiet_fakes


def check_sizes(surgery: Surgery, graph: fx.Graph, added: Mapping[str, nn.Module]) -> None:
    """Run a training graph whose site drops tokens, with nothing computed, at two batch sizes.

    Every size behind the site has to be the one that the model has there, or that of the kept tokens in the place of
    all: so nothing has been spread over rows or heads that only happen to be as many.

    Args:
        surgery: the rewrite.
        graph: the graph.
        added: the modules that the model has not.

    Raises:
        InvalidOption: an operation does not take the kept tokens, or makes another size of them.
    """
    number = next(i for i, r in enumerate(surgery.requests) if r.resizes)
    request, place = surgery.requests[number], surgery.samples.places[number]
    tokens = token_dim(surgery.cuts[number], place)
    if tokens is None or not surgery.samples.dims:
        return
    model = surgery.structure.model
    root = nn.Module()
    root.__dict__.update(_parameters=model._parameters, _buffers=model._buffers)
    root._modules.update({**model._modules, **added})
    cut = next(n for n in graph.nodes if n.name == surgery.cuts[number].name)
    try:
        with undisturbed(model), undrawn(), unchanged(model, tensors=False), quiet_fakes():
            model.train()
            for more in (0, 3):
                against = _Sizes(root, graph, cut, tokens, exact=not more).against(_inputs(surgery, more))
                if against:
                    raise InvalidOption(
                        f"{type(request.transform).__name__} is not possible at '{request.target}': {against}. "
                        "Choose another site."
                    )
    finally:
        for module in added.values():
            if isinstance(module, Augmentation):
                module.forget()


def _inputs(surgery: Surgery, more: int) -> dict[str, Any]:
    """Sizes of the inputs, with so many rows more."""
    dims = surgery.samples.dims
    device = next((p.device for p in surgery.structure.model.parameters()), None)

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        sizes = [n + more if d == dims.get(id(value)) else n for d, n in enumerate(value.shape)]
        where = device if value.is_meta and device is not None else value.device
        return lambda: torch.empty(sizes, dtype=value.dtype, device=where)

    made: dict[str, Any] = torch.utils._pytree.tree_map(fake, dict(surgery.structure.signature.examples))
    return made


class _Sizes(Interpreter):
    """Runs the graph, and finds the first node behind the site whose sizes are not those that they have to be."""

    def __init__(self, root: nn.Module, graph: fx.Graph, cut: fx.Node, tokens: int, exact: bool) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self.cut, self.dim, self.exact = cut, tokens, exact
        self.tokens = (value_of(cut).shape[tokens], 0)
        self.found = ""
        self.extra_traceback = False

    def against(self, inputs: Mapping[str, Any]) -> str:
        """What speaks against the graph, or an empty string."""
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                given = torch.utils._pytree.tree_map(lambda v: v() if callable(v) else v, dict(inputs))
                self.run(
                    *[given.get(str(n.target), *n.args) for n in self.graph.nodes if n.op == "placeholder"]
                )
        except _Found:
            return self.found
        except Exception as error:
            if not self.found or "fake_tensor" in type(error).__module__:
                return ""  # what cannot be run on fakes is not looked at
            return self.found
        return ""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and look at its sizes."""
        self.found = ""
        try:
            out = super().run_node(n)
        except Exception as error:
            if self.tokens[1]:
                said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160].rstrip(".")
                self.found = f"{describe(n)} behind it does not take {self.tokens[1]} tokens: {said}"
            raise
        if n is self.cut:
            value = out[0] if isinstance(out, tuple) else out
            self.tokens = (self.tokens[0], int(value.shape[self.dim]))
        elif self.tokens[1] and self.exact and n.target not in (followed, shortened):
            self._look(n, out)
        return out

    def _look(self, node: fx.Node, out: Any) -> None:
        first, second = value_of(node), out
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        before, after = tuple(first.shape), tuple(second.shape)
        every, kept = self.tokens
        same = len(before) == len(after) and all(
            a == b or (a % every == 0 and b == a // every * kept) for a, b in zip(before, after, strict=True)
        )
        if not same:
            sizes = ["×".join(map(str, s)) or "one number" for s in (before, after)]
            less = f"{sizes[1]} with {kept} of {every} tokens"
            self.found = f"{describe(node)} behind it is {less}, and {sizes[0]} with all"
            raise _Found


class _Found(Exception):
    """A size that is not what it has to be."""
