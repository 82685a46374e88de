"""Integers that opened code takes out of its inputs, to split by: read in every call, and no answer to a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError


def by_list(h: Tensor, n: Tensor) -> Tensor:
    """Pieces as of images of other sizes, each with its own mean."""
    pieces = torch.split(h, (n.prod(-1) // 2).tolist())
    return torch.cat([p - p.mean(0) for p in pieces])


def by_items(h: Tensor, n: Tensor) -> Tensor:
    sizes = [int_of.item() for int_of in (n.prod(-1) // 2).unbind()]
    return torch.cat([p - p.mean(0) for p in h.split(sizes)])


def by_nested_lists(h: Tensor, n: Tensor) -> Tensor:
    sizes = [row[0] * row[1] // 2 for row in n.tolist()]
    return torch.cat([p - p.mean(0) for p in h.split(sizes)])


def of_one_number(h: Tensor, n: Tensor) -> Tensor:
    return h[: n.sum().tolist()] * 2


READERS = (by_list, by_items, by_nested_lists)


class Splits(nn.Module):
    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(4, 4), nn.Linear(4, 4), read

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        out: Tensor = self.second(self.read(torch.tanh(self.first(x)), n))
        return out


def inputs_of(halves: list[int]) -> dict[str, Tensor]:
    return {"x": torch.randn(sum(halves), 4), "n": torch.tensor([[h, 2] for h in halves])}


@pytest.mark.parametrize("read", READERS)
@given(
    halves=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    others=st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
@settings(max_examples=5)
def test_they_are_read_in_every_call(read: Any, halves: list[int], others: list[int]) -> None:
    torch.manual_seed(0)
    model = Splits(read)
    aug = ga.rewrite(model, "second", allow_bypass=True, subset=0.0, example_inputs=inputs_of(halves))
    for sizes in (halves, others):
        inputs = inputs_of(sizes)
        for training in (True, False):
            aug.train(training)
            wanted, found = model(**inputs), aug(**inputs)
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            gradients = [
                torch.autograd.grad(out.square().sum(), [*model.parameters()]) for out in (wanted, found)
            ]
            for mine, theirs in zip(*gradients, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("read", READERS)
def test_how_many_there_are_is_relied_on(read: Any) -> None:
    model = Splits(read)
    aug = ga.rewrite(model, "second", example_inputs=inputs_of([2, 3]))
    with pytest.raises(AssumptionViolated):
        aug(**inputs_of([2, 3, 1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_they_may_be_of_any_kind_of_integer(dtype: torch.dtype) -> None:
    model = Splits(lambda h, n: h * n[0].item() + ~n[1].item())
    inputs = {"x": torch.randn(5, 4), "n": torch.tensor([2, 3], dtype=dtype)}
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=inputs)
    for n in ([2, 3], [4, 1]):
        other = {"x": inputs["x"], "n": torch.tensor(n, dtype=dtype)}
        torch.testing.assert_close(aug(**other), model(**other), rtol=0, atol=0)


def test_a_single_number_cuts() -> None:
    model = Splits(of_one_number)
    aug = ga.rewrite(
        model, "first", subset=0.0, example_inputs={"x": torch.randn(9, 4), "n": torch.tensor([2, 3])}
    )
    for n in ([2, 3], [1, 1]):
        inputs = {"x": torch.randn(9, 4), "n": torch.tensor(n)}
        torch.testing.assert_close(aug(**inputs), model(**inputs), rtol=0, atol=0)


def branches(h: Tensor, n: Tensor) -> Tensor:
    return h if n.tolist()[0] > 2 else -h


def looks_up(h: Tensor, n: Tensor) -> Tensor:
    return h * {2: 1.0, 3: 2.0}[n.tolist()[0]]


def makes_a_text(h: Tensor, n: Tensor) -> Tensor:
    return h * len(f"{n.tolist()[0]}")


def of_activations(h: Tensor, n: Tensor) -> Tensor:
    return torch.cat(h.split([int(h.argmax().item()) % 3 + 1] * 2))


def of_answers(h: Tensor, n: Tensor) -> Tensor:
    return h.sum(0) * sum((h > 0).all(1).tolist())


def of_what_is_computed(h: Tensor, n: Tensor) -> Tensor:
    return torch.cat(h.split(h.round().long().abs()[:, 0].tolist()))


def drawn(h: Tensor, n: Tensor) -> Tensor:
    k = torch.randint(1, 4, (2,))
    return torch.cat(h[: k.sum()].split(k.tolist()))


def by_a_count(h: Tensor, n: Tensor) -> Tensor:
    return h if h[h > 0].numel() > 7 else -h


@pytest.mark.parametrize(
    "read",
    [drawn, by_a_count, branches, looks_up, makes_a_text, of_activations, of_answers, of_what_is_computed],
)
def test_what_they_decide_is_refused(read: Any) -> None:
    inputs = {"x": torch.randn(5, 4), "n": torch.tensor([2, 3])}
    with pytest.raises(CaptureError, match=r"test_numbers_of_inputs\.py line \d+"):
        ga.rewrite(Splits(read), "first", example_inputs=inputs)
