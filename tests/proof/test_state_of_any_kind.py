"""What a prefix keeps from call to call, in whatever holds it, is no business of parts of a batch.

Oracle: one forward of the model has one factor for all of its rows; and the model itself goes on where it was.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError, SparseBackwardError

FEATURES = 8


@dataclasses.dataclass(slots=True)
class Slots:
    n: int = 0

    def step(self) -> float:
        self.n += 1
        return float(self.n)


class Plain:
    def __init__(self) -> None:
        self.n = 0

    def step(self) -> float:
        self.n += 1
        return float(self.n)


def counts_in_an_array() -> Callable[[], float]:
    held = np.zeros(1)

    def step() -> float:
        held[0] += 1
        return float(held[0])

    return step


def rotates() -> Callable[[], float]:
    held = collections.deque([1.0, 2.0, 3.0])

    def step() -> float:
        held.rotate(1)
        return held[0]

    return step


def counts_in_a_counter() -> Callable[[], float]:
    held: collections.Counter[str] = collections.Counter()

    def step() -> float:
        held["n"] += 1
        return float(held["n"])

    return step


def schedules() -> Callable[[], float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=100)

    optimizer.step()

    def step() -> float:
        schedule.step()
        return float(schedule.get_last_lr()[0])

    return step


def takes(make: Callable[[], Any]) -> Callable[[], Callable[[], float]]:
    """Steps that take from an iterator."""

    def made() -> Callable[[], float]:
        iterator = make()
        return lambda: float(next(iterator))

    return made


STEPS: dict[str, Callable[[], Callable[[], float]]] = {
    "numpy's generator": lambda: np.random.default_rng(0).random,
    "numpy's old generator": lambda: np.random.RandomState(0).rand,
    "Python's generator": lambda: random.Random(0).random,
    "slots": lambda: Slots().step,
    "an object": lambda: Plain().step,
    "an array": counts_in_an_array,
    "a deque": rotates,
    "a Counter": counts_in_a_counter,
    "a schedule": schedules,
    "a count": takes(lambda: itertools.count(1)),
    "an iterator over a list": takes(lambda: iter([float(n) for n in range(1, 1000)])),
    "an iterator over a range": takes(lambda: iter(range(1, 1000))),
    "a cycle": takes(lambda: itertools.cycle([1.0, 2.0, 3.0])),
    "a map": takes(lambda: map(float, range(1, 1000))),
    "a chain": takes(lambda: itertools.chain([1.0, 2.0], range(3, 1000))),
}


class Scaled(nn.Module):
    def __init__(self, step: Callable[[], float]) -> None:
        super().__init__()
        self.linear, self.step = nn.Linear(FEATURES, FEATURES), step

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.step()


def model_of(step: Callable[[], float]) -> nn.Sequential:
    return nn.Sequential(
        Scaled(step), nn.GELU(), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
    )


@pytest.mark.parametrize("name", STEPS)
def test_a_prefix_that_goes_on_runs_once_a_step(name: str) -> None:
    torch.manual_seed(0)
    model, x = model_of(STEPS[name]()), torch.randn(6, FEATURES)
    with pytest.raises(SparseBackwardError, match="not possible"):
        ga.rewrite(model, "2", stop_grad=True, backward="proved", example_inputs=x)
    aug = ga.rewrite(model, "2", rate=0.0, stop_grad=True, example_inputs=x).train()
    assert aug.plan.backward == "dense"
    assert re.search("once for each part|keeps state|holds state", aug.plan.reason)
    alone = STEPS[name]()  # where the model's own is, if the rewrite has moved nothing
    for _ in range(3):
        found = aug(x)
        factor = alone()
        expected = model[1:](model[0].linear(x) * factor)  # type: ignore[operator]
        torch.testing.assert_close(found, expected)


def test_a_generator_of_python_is_refused_by_name() -> None:
    endless = (float(n) for n in itertools.count())
    with pytest.raises(CaptureError, match=r"an iterator \(generator\) that cannot be put back"):
        ga.rewrite(model_of(lambda: next(endless)), "2", example_inputs=torch.randn(6, FEATURES))


@pytest.mark.parametrize("own", [np.random.default_rng(0), random.Random(0)], ids=["numpy", "Python"])
def test_verify_lets_the_model_and_the_oracle_draw_the_same(own: Any) -> None:
    torch.manual_seed(0)
    model, x = model_of(own.random), torch.randn(6, FEATURES)
    aug = ga.rewrite(model, "2", stop_grad=True, example_inputs=x)
    assert ga.verify(aug, x)


class Membrane(nn.Module):
    """Keeps a potential from call to call, with the graph of the calls before."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.potential = torch.zeros(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.9 * self.potential + self.body(x)
        return self.head(self.potential)


def test_verify_leaves_the_graph_of_an_earlier_call_to_the_caller() -> None:
    model, x = Membrane(), torch.randn(4, 8)
    aug = ga.rewrite(model, "body", subset=0.0, example_inputs=x).train()
    aug(x)
    output = aug(x)
    ga.verify(aug, x)
    output.sum().backward()
    assert model.body.weight.grad is not None
