"""What a step changes on its way is changed in the sparse form, too. Oracle: a second model that is not rewritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import VerificationError
from graphaug.sparse import split, trial

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A block between two layers, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("step", torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(6))


class UnusedResult(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.first(x))
        _ = self.step.add_(1) / 100
        return self.last(h)


class UnusedEntry(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.step.add_(1)[0].mul(2)
        return self.last(self.block(self.first(x)))


class OneMemory(Net):
    """A parameter, and another name of its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.scale.data

    def forward(self, x: Tensor) -> Tensor:
        self.values.mul_(0.5)
        return self.last(self.block(self.first(x) + self.scale))


class Counter(nn.Module):
    """Counts, and returns nothing or its count."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.returns = returns
        self.register_buffer("n", torch.zeros(1))

    def forward(self) -> Tensor | None:
        self.n.add_(1)
        return self.n * 2 if self.returns else None


class CalledBehind(Net):
    def __init__(self) -> None:
        super().__init__()
        self.count = Counter(returns=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.first(x))
        self.count()
        return self.last(h) * self.count.n


class UsedBehind(Net):
    """What is counted before the cut is read there, and what is returned behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter(returns=True)

    def forward(self, x: Tensor) -> Tensor:
        k = self.count()
        return self.last(self.block(self.first(x) + self.count.n)) * k


class Listed(nn.Module):
    """A layer with a tensor in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(6, 6), [torch.ones(6)]

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h) + self.held[0]


class InAList(Net):
    """Writes into what the closed block keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Listed()
        self.own = self.block.held[0]

    def forward(self, x: Tensor) -> Tensor:
        self.own.mul_(0.5)
        return self.last(self.block(self.first(x)))


class IntoTheBatch(Net):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.first(self.front(x))))


class Retaining(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.retain_grad()
        return self.last(self.block(h))


CASES = [UnusedResult, UnusedEntry, OneMemory, CalledBehind, UsedBehind, InAList, IntoTheBatch, Retaining]


def pair(cls: type[Net], **options: Any) -> tuple[Any, Net]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(cls())
    return ga.rewrite(models[0], "block", rate=0.0, subset=0.5, stop_grad=True, **options).train(), models[1]


@pytest.mark.parametrize("given", [{"example_inputs": X}, {}], ids=["examples", "guessed"])
@pytest.mark.parametrize("cls", CASES)
def test_a_step_changes_what_the_models_changes(cls: type[Net], given: dict[str, Any]) -> None:
    aug, plain = pair(cls, **given)
    for _ in range(3):
        mine, theirs = X.clone(), X.clone()
        torch.testing.assert_close(aug(mine), plain(theirs))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(aug.original.state_dict()[name], value, msg=name)
    ga.verify(aug, X)


@pytest.mark.parametrize("cls", [UnusedResult, CalledBehind, UsedBehind])
def test_verify_finds_what_is_left_otherwise(cls: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the split form is taken without the checks that keep it from that."""
    monkeypatch.setattr(trial, "acts_otherwise", lambda *_: "")
    monkeypatch.setattr(split, "_check_effects", lambda *_: None)
    monkeypatch.setattr(split.itertools, "takewhile", lambda *_: iter(()))
    aug, _ = pair(cls, example_inputs=X)
    monkeypatch.undo()
    assert aug.plan.backward == "sparse"
    with pytest.raises(VerificationError):
        ga.verify(aug, X)


def test_a_model_without_effects_stays_sparse() -> None:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.block(self.first(x)))

    aug, _ = pair(Plain, example_inputs=X)
    assert aug.plan.backward == "sparse"
