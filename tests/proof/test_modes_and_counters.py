"""What no operation shows: the grad mode, counters in classes, weights that hooks make, norms kept in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, is_grad_enabled, nn
from torch.nn.utils import prune

import graphaug as ga

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
EXAMPLE: dict[str, Any] = {"rate": 0.0, "stop_grad": True, "example_inputs": X}


class Asking(nn.Module):
    """A closed module that runs a function with the input and what a layer makes of it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, torch.tanh(self.linear(x)))


def network(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(block, nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def by_attribute(x: Tensor, h: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return h * 2
    return h


def other_value(x: Tensor, h: Tensor) -> Tensor:
    doubled, halved = h * 2, h / 2
    return doubled if h.requires_grad else halved


def other_number(x: Tensor, h: Tensor) -> Tensor:
    return h * (2.0 if h.requires_grad else 3.0)


DEPENDENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "is_grad_enabled": by_attribute,
    "by its own name": lambda x, h: h * 2 if is_grad_enabled() else h,
    "requires_grad": lambda x, h: h * 2 if h.requires_grad else h,
    "is_leaf": lambda x, h: h if h.is_leaf else h * 2,
    "the input's is_leaf": lambda x, h: h * 2 if x.is_leaf else h,
    "another value": other_value,
    "another number": other_number,
}


@pytest.mark.parametrize("function", DEPENDENT.values(), ids=DEPENDENT)
def test_a_forward_that_follows_the_grad_mode_is_dense(function: Callable[..., Tensor]) -> None:
    model = network(Asking(function))
    aug = ga.rewrite(model, "1", **EXAMPLE).train()
    assert aug.plan.backward == "dense"
    assert "without gradients" in aug.plan.reason
    torch.testing.assert_close(aug(X), model(X))


def checked(x: Tensor, h: Tensor) -> Tensor:
    if torch.is_grad_enabled() and h.requires_grad:
        assert not h.is_leaf
    return h * 2


def without(x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.square().mean(-1, keepdim=True)
    asked = h.requires_grad
    return h / scale.sqrt() + (0 if asked is None else 1)


@pytest.mark.parametrize("function", [checked, without])
def test_a_question_that_changes_nothing_is_harmless(function: Callable[..., Tensor]) -> None:
    aug = ga.rewrite(network(Asking(function)), "1", backward="proved", **EXAMPLE).train()
    assert aug.plan.backward == "sparse"


class Counting(nn.Module):
    """Counts in its class, in some way, and computes something else in every second call."""

    calls = 0
    seen: ClassVar[list[int]] = []

    def __init__(self, count: Callable[[Any], int]) -> None:
        super().__init__()
        self.linear, self.count = nn.Linear(6, 6), count

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + self.count(self) % 2)


class Counter:
    """Counts for others."""

    calls = 0


def by_type(module: Any) -> int:
    type(module).calls += 1
    return int(type(module).calls)


def by_name(module: Any) -> int:
    Counter.calls += 1
    return Counter.calls


def by_list(module: Any) -> int:
    module.seen.append(1)
    return len(module.seen)


@pytest.mark.parametrize("count", [by_type, by_name, by_list])
def test_a_counter_in_a_class_is_state(count: Callable[[Any], int]) -> None:
    Counting.calls, Counter.calls = 0, 0
    Counting.seen.clear()
    plan = ga.rewrite(network(Counting(count)), "1", **EXAMPLE).plan
    assert plan.backward == "dense"
    assert "holds state of the batch" in plan.reason


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", [nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)])
def test_a_weight_that_a_hook_makes_is_called_that(how: Callable[[nn.Module], Any]) -> None:
    model = network(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    how(model[0][0])
    plan = ga.rewrite(model, "1", **EXAMPLE).plan
    assert plan.backward == "dense"
    assert "is made anew in every forward" in plan.reason


class KeptInEval(nn.Module):
    """A norm that stays in eval mode."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, **options)

    def train(self, mode: bool = True) -> KeptInEval:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(x))


@pytest.mark.filterwarnings("ignore::graphaug.errors.SparseBackwardLost")
def test_a_norm_in_eval_mode_couples_no_rows() -> None:
    model = network(nn.Sequential(nn.Linear(6, 6), KeptInEval()))
    aug = ga.rewrite(model, "1", backward="proved", **EXAMPLE).train()
    torch.testing.assert_close(aug(X), model(X))
    ga.verify(aug, X)
    model[0][1].norm.train()
    torch.testing.assert_close(aug(X), model(X))
    assert "is in training mode" in aug.plan.reason


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, KeptInEval])
def test_a_norm_without_statistics_of_its_own_is_verified(norm: Callable[..., nn.Module]) -> None:
    given = {} if norm is KeptInEval else {"num_features": 6}
    model = network(nn.Sequential(nn.Linear(6, 6), norm(**given, track_running_stats=False)))
    aug = ga.rewrite(model, "1", backward="sparse", **EXAMPLE)
    before = {name: dict(vars(m)["_buffers"]) for name, m in model.named_modules()}
    ga.verify(aug, X)
    assert before == {name: dict(vars(m)["_buffers"]) for name, m in model.named_modules()}
