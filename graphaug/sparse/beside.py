"""What the suffix needs without gradient is computed beside the prefix once more: is it the same both times?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.dataflow import reads_metadata
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.state import seed, unchanged, undrawn
from graphaug.capture.values import value_of
from graphaug.proof.equivalence import same
from graphaug.sparse.entries import entry_of
from graphaug.sparse.run import Split
from graphaug.torch_private import FakeTensorMode, quiet_fakes


def drawn_twice(aug: Any, found: Split, values: dict[str, Any], guessed: str) -> str:
    """Why what the suffix needs without gradient cannot be computed beside the prefix, or an empty string."""
    assert found.shared is not None
    twice = {n.name for n in found.shared.nodes if _is_computed(n)} & {
        n.name for graph in (found.prefix, found.suffix) for n in graph.nodes if _is_computed(n)
    }
    if not twice:
        return ""
    held = (*aug.parameters(), *torch.utils._pytree.tree_leaves(values))
    on_meta = any(t.is_meta for t in held if isinstance(t, Tensor))
    with undrawn(), unchanged(aug.original), torch.no_grad():
        if not _may_draw(aug, values):
            return ""
        if guessed or on_meta:
            without = "there are no example_inputs" if guessed else "the model lies on the meta device"
            return f"the suffix needs what is computed beside the prefix, which may be drawn at random, and {without}"
        # where a draw leads to nothing of it, or its shape alone is read, it is the same for another seed
        if _differs(aug, values):
            return "what the suffix needs without gradient is drawn at random, and would be drawn twice"
    return ""


class _Draws(TorchDispatchMode):
    """Notices operations that draw from a generator of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _may_draw(aug: Any, values: dict[str, Any]) -> bool:
    """Whether the part that both need draws: its operations are looked at on fake tensors, for whatever data."""
    try:
        return _draws(aug, values)
    except Exception:  # it does not run without data
        return True


def _draws(aug: Any, values: dict[str, Any]) -> bool:
    device = next((p.device for p in aug.parameters()), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), quiet_fakes():

        def fake(tensor: Tensor) -> Tensor:
            at = device if tensor.is_meta else tensor.device
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=at)

        fakes = map_tensors(fake, values)
        with _Draws() as draws:
            aug._forward_shared(**fakes)
    return bool(draws.seen)


def _differs(aug: Any, values: dict[str, Any]) -> bool:
    """Whether it is another for another seed."""

    def run(number: int) -> Any:
        seed(number)
        return aug._forward_shared(**values)

    return not same(run(0), run(1))


def _is_computed(node: fx.Node) -> bool:
    """Whether a node makes a tensor, in whichever graph it is."""
    made = node.op.startswith("call_") and isinstance(value_of(node), Tensor) and entry_of(node) is None
    return made and not reads_metadata(node)
