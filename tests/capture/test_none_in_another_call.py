"""What is closed and may return None in another call: the graph relies on the tensor, as no operation may notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Chooses(nn.Module):
    def forward(self, h: Tensor, k: Any) -> Tensor | None:
        return h if k > 2 else None


class FallsThrough(nn.Module):
    def forward(self, h: Tensor, k: Any) -> Any:  # noqa: RET503
        if k > 2:
            return h


class Named(nn.Module):
    def forward(self, h: Tensor, k: Any) -> Tensor | None:
        out = None
        if k > 2:
            out = h * 1
        return out


class HandsBack(nn.Module):
    def forward(self, h: Tensor, k: Any, cached: Tensor | None = None) -> Tensor | None:
        if k > 2:
            cached = h * 1
        return cached


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Named()

    def forward(self, h: Tensor, k: Any) -> Any:
        return self.inner(h, k)


def function(h: Tensor, k: Any) -> Tensor | None:
    return h if k > 2 else None


class Asks(nn.Module):
    """Goes another way where there is nothing, and never uses what there is."""

    def __init__(self, inner: Callable[..., Any], read: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.inner, self.read = nn.Linear(4, 4), nn.Linear(4, 4), inner, read

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second(h if self.inner(h, self.read(h, n)) is None else h * 2)
        return out


class AsksAFunction(Asks):
    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second(h if function(h, self.read(h, n)) is None else h * 2)
        return out


READERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a number of the inputs": lambda h, n: n[0].item(),
    "a tensor": lambda h, n: n[0],
    "a size": lambda h, n: h.shape[0] - 3,
}
INNER = [Chooses, FallsThrough, Named, HandsBack, Inside]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("inner", [*INNER, function])
def test_it_is_relied_on(inner: Any, read: str) -> None:
    torch.manual_seed(0)
    model = AsksAFunction(function, READERS[read]) if inner is function else Asks(inner(), READERS[read])
    inputs = {"x": torch.randn(6, 4), "n": torch.tensor([3])}
    try:
        aug = ga.rewrite(model, "first", subset=0.0, allow_bypass=True, example_inputs=inputs)
    except ga.GraphaugError:
        return  # a refusal is as good
    torch.testing.assert_close(aug(**inputs), model(**inputs), rtol=0, atol=0)
    other = {"x": torch.randn(4, 4), "n": torch.tensor([1])}
    with pytest.raises(AssumptionViolated):
        aug(**other)
    with pytest.raises(AssumptionViolated), aug.eval().only_the_graph():
        aug(**other)
