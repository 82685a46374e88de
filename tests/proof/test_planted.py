"""Rows that meet where no example shows it: above a threshold, at one size, after some steps, in gradients only.

Each is planted in the prefix of a model that would else be sparse. It has to be found or refused, by "auto" in its
plan and by "proved" with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import SparseBackwardError

pytestmark = pytest.mark.few(6)

ROWS, WIDTH = 8, 6
Call = Callable[[Tensor], Tensor]
STEPS = {"taken": 0}
TAKEN = 0
QUEUE: list[Tensor] = []
TABLE = torch.zeros(WIDTH)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def after_steps(x: Tensor) -> Tensor:
    STEPS["taken"] += 1
    return centred(x) if STEPS["taken"] > 100 else x


def after_steps_by_name(x: Tensor) -> Tensor:
    global TAKEN
    TAKEN += 1
    return centred(x) if TAKEN > 100 else x


def after_steps_in_a_helper(x: Tensor) -> Tensor:
    return after_steps(x) * 1


def closed_over() -> Call:
    taken = 0

    def forward(x: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        return centred(x) if taken > 100 else x

    return forward


def last_batch(x: Tensor) -> Tensor:
    before = QUEUE[-1].mean(0) if QUEUE and len(QUEUE) > 100 else torch.zeros(WIDTH)
    QUEUE.append(x.detach())
    return x - before


def running_table(x: Tensor) -> Tensor:
    TABLE.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return x - TABLE


def hooked_above(x: Tensor) -> Tensor:
    y = x * 1
    if y.requires_grad:
        y.register_hook(lambda g: torch.where(g.abs() > 1e3, g - g.mean(0), g))
    return y


class BackwardAbove(torch.autograd.Function):
    """The identity, whose gradient is centred over the rows where it is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.where(g.abs().amax() > 1e3, g - g.mean(0), g)


def shifted_over_neighbours(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:] += y[:-1] * (y[:-1] > 1e3)
    return y


def longest(x: Tensor) -> Tensor:
    kept = (x > -1e3).any(0)  # positions that no row uses are cut for all
    return x * kept


def capacity(x: Tensor) -> Tensor:
    """A mixture of experts of which each takes so many tokens of the batch."""
    order = x[:, 0].argsort().argsort()
    return torch.where((order < 100)[:, None], x, x * 0.5)


def by_bytes(x: Tensor) -> Tensor:
    return centred(x) if x.numel() * x.element_size() > 10_000 else x


def by_length_of_list(x: Tensor) -> Tensor:
    return centred(x) if len(x.tolist()) == 5 else x


class Gate(nn.Module):
    """A gate that opens when somebody loads other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.relu(self.gate - 10) * x.mean(0)


class Memory(nn.Module):
    """A buffer that counts, and acts late."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return torch.where(self.seen > 100, centred(x), x)


class Replaced(nn.Module):
    """A tensor attribute that is replaced in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x, self.mean = x - self.mean, 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


class Hooked(nn.Module):
    """A module whose own backward hook centres gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.inner.register_full_backward_hook(lambda m, given, out: (given[0] - given[0].mean(0),))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Scaled(nn.Module):
    """Tokens by nearest neighbour in a table whose gradient counts how often the batch asks for an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, WIDTH, scale_grad_by_freq=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x[:, 0] > 0).long())


PLANTED: dict[str, Call | nn.Module] = {
    "above a threshold": lambda x: x - x.mean(0) * (x.abs().amax() > 1e3),
    "rows above a threshold": lambda x: torch.where(x.amax(1, keepdim=True) > 1e3, centred(x), x),
    "a branch above a threshold": lambda x: centred(x) if float(x.detach().abs().max()) > 1e3 else x,
    "at one batch size": lambda x: centred(x) if x.shape[0] == 13 else x,
    "at odd batch sizes": lambda x: centred(x) if len(x) % 2 else x,
    "of large batches": by_bytes,
    "by the length of a list": by_length_of_list,
    "after steps, in a dictionary": after_steps,
    "after steps, in a global": after_steps_by_name,
    "after steps, in a helper": after_steps_in_a_helper,
    "after steps, closed over": closed_over(),
    "after steps, in a buffer": Memory(),
    "a queue of batches": last_batch,
    "a table beside the model": running_table,
    "an attribute that is replaced": Replaced(),
    "gradients, by a hook above a threshold": hooked_above,
    "gradients, by a function above a threshold": BackwardAbove.apply,
    "gradients, by a module's hook": Hooked(),
    "gradients, straight through": lambda x: x + 1e-6 * (x.mean(0) - x.mean(0).detach()),
    "gradients, by how often": Scaled(),
    "a gate that is closed": Gate(),
    "neighbours above a threshold": shifted_over_neighbours,
    "positions that no row uses": longest,
    "places among all rows": capacity,
    "a faint norm": lambda x: x / (1 + 1e-7 * x.norm()),
    "a draw for all": lambda x: x + F.dropout(torch.ones(WIDTH), 1e-6),
}


class Planted(nn.Module):
    """A closed module that computes a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_coupling_is_found_or_refused(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), Planted(PLANTED[name]), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
    )
    options: dict[str, Any] = {"stop_grad": True, "example_inputs": torch.randn(ROWS, WIDTH)}
    plan = ga.rewrite(model, "2", **options).plan
    assert plan.backward == "dense", plan.reason
    assert "row" in plan.reason or "state" in plan.reason, plan.reason
    with pytest.raises(SparseBackwardError):
        ga.rewrite(model, "2", backward="proved", **options)
    with pytest.raises(SparseBackwardError):
        ga.rewrite(model, "2", backward="sparse", **options)
    assert (STEPS, TAKEN, QUEUE, float(TABLE.sum())) == ({"taken": 0}, 0, [], 0.0)


def test_the_same_model_without_it_is_sparse() -> None:
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), Planted(torch.tanh), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
    )
    plan = ga.rewrite(model, "2", stop_grad=True, example_inputs=torch.randn(ROWS, WIDTH)).plan
    assert plan.reason.startswith("rows proved independent"), plan.reason
