"""Penalties of the weights beside the output are no way around a cut. Oracles: the plain model, and planted ways."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import graphaug as ga
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.below import nothing_below
from graphaug.proof.on_a_batch.weights_alone import of_weights_alone

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Penalised(nn.Module):
    """Returns what it takes its weights to cost, beside its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cut, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.spread = nn.Parameter(torch.zeros(8, 8))

    def weight(self) -> Tensor:
        """What the samples meet."""
        return self.first.weight

    def penalty(self, weight: Tensor) -> Tensor:
        return weight.pow(2).sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight()
        return self.head(self.cut(torch.tanh(F.linear(x, weight)))), self.penalty(weight)


class Scaled(Penalised):
    def weight(self) -> Tensor:
        return self.first.weight * 0.5


class ByTheBatch(Scaled):
    """The penalty is divided by a size of the input."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, penalty = super().forward(x)
        return out, penalty / x.shape[0]


class Bayesian(Penalised):
    """Draws its weights, and returns how far their distribution lies from the prior."""

    def weight(self) -> Tensor:
        spread = F.softplus(self.spread)
        return self.first.weight + spread * torch.randn_like(spread)

    def penalty(self, weight: Tensor) -> Tensor:
        spread = F.softplus(self.spread)
        return (spread**2 - 1 + self.first.weight**2).sum() / 2 - spread.log().sum()


class InPlace(Penalised):
    """The weights are changed in memory of their own, and not in that of the parameter."""

    def weight(self) -> Tensor:
        weight = self.first.weight.clone()
        weight.mul_(0.5)
        return weight


class OnBothSides(Scaled):
    """The same product of weights meets the samples in front of the cut, and behind it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight()
        h = self.cut(torch.tanh(F.linear(x, weight)))
        return self.head(F.linear(h, weight)), self.penalty(weight)


MODELS = [Penalised, Scaled, ByTheBatch, Bayesian, InPlace, OnBothSides]
every = pytest.mark.parametrize("make", MODELS, ids=[m.__name__ for m in MODELS])
STOPPED: dict[str, Any] = {"stop_grad": True, "backward": "dense", "example_inputs": X}


@every
@pytest.mark.parametrize("backward", ["dense", "auto"])
def test_a_penalty_of_weights_raises_no_alarm(make: Callable[[], nn.Module], backward: str) -> None:
    torch.manual_seed(0)
    model = make()
    aug = ga.rewrite(model, "cut", **{**STOPPED, "backward": backward})
    claims = str(ga.verify(aug, X))
    assert "has a gradient of the output but of what is made of weights alone" in claims


@pytest.mark.parametrize("make", [m for m in MODELS if m is not OnBothSides])
def test_what_is_left_is_the_gradient_of_the_plain_models_penalty(make: Callable[[], nn.Module]) -> None:
    model = make()
    aug = ga.rewrite(model, "cut", subset=1.0, **STOPPED).train()
    below = [model.first.weight, model.spread]

    def gradients(run: nn.Module, output: bool) -> list[Tensor]:
        torch.manual_seed(0)
        out, penalty = run(X)
        loss = penalty + out.sum() if output else penalty
        return list(torch.autograd.grad(loss, below, allow_unused=True, materialize_grads=True))

    for found, expected in zip(gradients(aug, True), gradients(model, False), strict=True):
        torch.testing.assert_close(found, expected)
    assert gradients(aug, True)[0].any()


@every
@pytest.mark.parametrize("target", [torch.tanh, F.linear], ids=["activation", "what weights meet"])
def test_a_way_around_is_found_beside_a_penalty(make: Callable[[], nn.Module], target: Any) -> None:
    """A value before the cut is added behind it, in the graph of the rewritten model alone."""
    model = make()
    aug = ga.rewrite(model, "cut", **STOPPED).train()
    check = functools.partial(nothing_below, aug, model, lambda run: run(X), lambda _: None)
    assert len(list(check())) == 1
    (cut,) = (n for n in aug.graph.nodes if n.target == aug.plan.sites[0].module)
    around = next(n for n in aug.graph.nodes if n.target is target)
    with aug.graph.inserting_after(cut):
        joined = aug.graph.call_function(torch.add, (cut, around))
    cut.replace_all_uses_with(joined, delete_user_cb=lambda user: user is not joined)
    aug.recompile()
    with pytest.raises(
        VerificationError, match=r"'(first\.weight|spread)' below the cut still has a gradient"
    ):
        list(check())


def test_what_is_closed_is_never_taken_for_weights_alone() -> None:
    """It is called with nothing of a sample, and returns one that the graph does not show."""

    def handed_on() -> Tensor:
        raise AssertionError

    graph = fx.Graph()
    weight, store = graph.get_attr("weight"), graph.get_attr("store")
    weight.meta["value"], store.meta["value"] = torch.zeros(8, 8), [torch.zeros(8, 8)]
    own = graph.call_function(torch.mul, (weight, 0.5))
    closed = graph.call_module("keeps", (own,))
    function = graph.call_function(handed_on, ())
    kept = [graph.call_function(operator.getitem, (store, 0)), graph.call_method("pop", (store,))]
    of_closed = graph.call_function(torch.mul, (closed, function))
    x = graph.placeholder("x")
    size = graph.call_function(getattr, (x, "shape"))
    of_size = graph.call_function(torch.mul, (own, size))
    met = graph.call_function(F.linear, (x, own))
    written = graph.call_method("add_", (own, met))
    later = graph.call_function(torch.mul, (own, 2))
    graph.output((of_closed, of_size, met, written, later))
    found = of_weights_alone(graph)
    assert {own, of_size} <= found
    assert not found & {*kept, closed, function, of_closed, met, written, later}
