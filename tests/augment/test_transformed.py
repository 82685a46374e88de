"""Transforms at sites whose samples lie anywhere. Oracle: the definition of the places, index by index."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphaug.augment.rows import Rows
from graphaug.augment.transform import PLAIN, Needs, Transform
from graphaug.augment.transformed import Transformed
from graphaug.augment.transforms.call import Call
from graphaug.augment.transforms.noise import Noise
from graphaug.errors import BatchError


@st.composite
def values(draw: Any) -> tuple[Tensor, Rows, int]:
    """A value, where its samples lie, and how many there are."""
    rank = draw(st.integers(2, 5))
    place = Rows(draw(st.integers(0, rank - 1)), draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    count = draw(st.integers(1, 6))
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    shape[place.dim] = count * place.slices
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(shape, generator=generator, dtype=torch.float64), place, count


def of_sample(value: Tensor, place: Rows, count: int, sample: int) -> Tensor:
    index = torch.arange(value.shape[place.dim])
    return value.index_select(place.dim, index[index // place.inner % count == sample])


@settings(max_examples=60)
@given(case=values())
def test_samples_come_to_the_front_and_go_back(case: tuple[Tensor, Rows, int]) -> None:
    value, place, count = case
    rows = place.samples(value)
    assert rows.shape[0] == count
    for sample in range(count):
        own = of_sample(value, place, count, sample)
        assert torch.equal(rows[sample].flatten().sort().values, own.flatten().sort().values)
    assert torch.equal(place.restored(rows, value), value)
    some = torch.randperm(count)[: max(1, count // 2)]
    assert torch.equal(place.restored(rows[some], value), place.take(value, some))
    rank = value.dim()
    channel = (place.dim + 1) % rank if rank > 3 else rank - 1
    channel = rank - 2 if channel == place.dim else channel
    at = 1 if rank > 3 else rows.dim() - 1
    assert rows.shape[at] == value.shape[channel]
    chosen = rows.select(at, 0)  # one channel of all samples is one channel of the value
    assert torch.equal(chosen.flatten().sort().values, value.select(channel, 0).flatten().sort().values)


@settings(max_examples=40)
@given(case=values(), times=st.integers(1, 3))
def test_a_batch_is_repeated_behind_itself(case: tuple[Tensor, Rows, int], times: int) -> None:
    value, place, count = case
    out = place.repeated(value, times)
    for view in range(times):
        for sample in range(count):
            found = of_sample(out, place, count * times, view * count + sample)
            assert torch.equal(found, of_sample(value, place, count, sample))


class Partner(Transform):
    """The row behind, and the mean of the batch: what a row takes from others can be told."""

    needs = Needs(partners=True, statistics=True, gradient=True)

    def draw(self, rows: Tensor, context: Any = PLAIN) -> Any:
        return context.batch.detach().mean(0), torch.arange(len(rows)).roll(-1)

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return 2 * rows[draws[1]] + draws[0]


@settings(max_examples=60)
@given(
    case=values(),
    subset=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    stop_grad=st.booleans(),
    seed=st.integers(0, 9),
)
def test_augmented_rows_and_no_others_go_through_it(
    case: tuple[Tensor, Rows, int], subset: float, stop_grad: bool, seed: int
) -> None:
    value, place, count = case
    node = Transformed(Partner(), subset, stop_grad, place=place)
    h = value.clone().requires_grad_()
    torch.manual_seed(seed)
    out = node(h)
    drawn = node.drawn.rows.nonzero().flatten().tolist()
    assert len(drawn) == round(subset * count)
    mean = torch.stack([place.samples(value)[i] for i in range(count)]).mean(0)
    rows = list(place.samples(h).unbind(0))
    before = list(rows)
    for k, i in enumerate(drawn):
        new = 2 * before[drawn[(k + 1) % len(drawn)]] + mean
        rows[i] = new.detach() if stop_grad else new
    expected = place.restored(torch.stack(rows), h)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad((o * weight).sum(), h)[0] for o in (out, expected + 0 * h))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(case=values(), seed=st.integers(0, 9))
def test_rows_that_a_sparse_step_has_apart_become_the_same(case: tuple[Tensor, Rows, int], seed: int) -> None:
    value, place, _count = case
    node = Transformed(Partner(), 0.5, True, place=place)
    torch.manual_seed(seed)
    out = node(value)
    drawn = node.drawn
    index = drawn.index if drawn.rows.any() else drawn.rows.nonzero().flatten()
    if len(index):
        gone = node.change(place.take(value, index), drawn.rows, index, lambda: value)
        torch.testing.assert_close(gone, place.take(out, index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", [Rows(0), Rows(1), Rows(0, 1, 2)], ids=str)
@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
def test_rows_that_do_not_meet_may_be_any_number(place: Rows, sampling: str) -> None:
    torch.manual_seed(0)
    node, h = Transformed(Noise(1.0), 0.5, sampling=sampling, place=place), torch.randn(4, 8, 3)
    for _ in range(5):
        out = node(h)
        same = (place.samples(out) == place.samples(h)).flatten(1).all(1)
        assert torch.equal(~same, node.drawn.rows)


def test_modes_structures_and_values_that_are_no_rows() -> None:
    node = Transformed(Call(torch.tanh))
    h, other = torch.randn(4, 3), object()
    out = node((h, other))
    assert isinstance(out, tuple)
    assert out[1] is other
    assert node.eval()(h) is h
    with pytest.raises(BatchError, match="choose another site"):
        node.train()(torch.ones(4, dtype=torch.long))
