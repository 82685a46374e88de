"""Conditions of the user's own code that only lead to an error stay in the graph. Oracle: the model itself.

What such a condition asks of the data is known without the data, as the forward goes on only if it holds; the graph
asserts it in every call. The file is read as it is: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError


def asserted(h: Tensor) -> None:
    assert torch.isfinite(h).all(), "not finite"


def asserted_not(h: Tensor) -> None:
    assert not h.isnan().any()


def raised(h: Tensor) -> None:
    if torch.isnan(h).any():
        raise ValueError("a number is missing")


def raised_by_either(h: Tensor) -> None:
    if h.isnan().any() or h.abs().max() > 1e6:
        raise ValueError(f"{h.max()} is too large")


def raised_unless(h: Tensor) -> None:
    if not (torch.isfinite(h).all() and h.max() < 1e6):
        raise OverflowError


def asserted_both(h: Tensor) -> None:
    assert torch.isfinite(h).all() and not (h.abs() > 1e6).any()  # noqa: PT018 as people write it


def by_numbers(h: Tensor) -> None:
    if h.isnan().any().item():
        raise ValueError("a number is missing")


def by_comparing_numbers(h: Tensor) -> None:
    assert h.isfinite().sum().item() == h.numel()


def by_two_numbers(h: Tensor) -> None:
    missing, none = h.isnan().sum().item(), torch.zeros_like(h).sum().item()
    assert missing == none
    if missing != none:
        raise ValueError("a number is missing")


def by_counting(h: Tensor) -> None:
    torch._check(h[h.isfinite()].numel() == h.numel(), lambda: "not all are finite")


def on_several_lines(h: Tensor) -> None:
    assert (  # noqa: PT018
        h.isfinite().all()
        and h.shape[1] == 4
        and
        # as people write them
        not h.isnan().any()
    ), f"{h.sum()}"


def where_it_is_wanted(h: Tensor) -> None:
    if h.shape[1] == 4 and h.isnan().any():
        raise ValueError("a number is missing")
    assert h.shape[1] == 5 or h.isfinite().all()


def after_a_report(h: Tensor) -> None:
    if h.isnan().any():
        print("stopping")
        raise RuntimeError("a number is missing")


CHECKS = [
    *(asserted, asserted_not, raised, raised_by_either, raised_unless, asserted_both, by_numbers),
    *(
        by_comparing_numbers,
        by_two_numbers,
        by_counting,
        on_several_lines,
        where_it_is_wanted,
        after_a_report,
    ),
]


class Checking(nn.Module):
    """Checks before, at, and behind the site ``first``."""

    def __init__(self, check: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.first, self.second, self.check = nn.Linear(4, 4), nn.Linear(4, 4), check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        h = self.first(x)
        self.check(h)
        y = self.second(torch.tanh(h))
        self.check(y)
        return y  # type: ignore[no-any-return]


def agrees(aug: nn.Module, plain: nn.Module, x: Tensor) -> None:
    found, wanted = aug(x), plain(x)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(aug.first.weight.grad, plain.first.weight.grad)  # type: ignore[union-attr]
    aug.zero_grad()
    plain.zero_grad()


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_is_made_in_every_call(check: Any) -> None:
    torch.manual_seed(0)
    model, x = Checking(check), torch.randn(6, 4)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, "first", transform=lambda h: h * 1.0, example_inputs=x)
    for mode in (True, False):
        agrees(aug.train(mode), plain.train(mode), torch.randn(3, 4))
        for bad in (torch.full((3, 4), torch.nan), torch.tensor([[0.0, 1.0, torch.nan, 0.0]])):
            with pytest.raises((AssertionError, ValueError, RuntimeError, OverflowError)):
                plain(bad)
            with pytest.raises((AssertionError, ValueError, RuntimeError, OverflowError)):
                aug(bad)


@pytest.mark.parametrize("check", CHECKS)
def test_a_step_is_sparse_where_checks_are_behind_the_cut(check: Any) -> None:
    """A check of what trained layers before the cut compute would see the rows in two parts, and the step is dense."""
    torch.manual_seed(0)
    model, x = Checking(check), torch.randn(6, 4)
    aug = ga.rewrite(model, "first", stop_grad=True, rate=0.0, example_inputs=x)
    assert aug.plan.backward == "sparse"
    ga.verify(aug, x)
    with pytest.raises(RuntimeError, match=r"test_checks_of_users\.py line"):
        aug.train()(torch.full((6, 4), torch.nan))
    within = ga.rewrite(model, "second", stop_grad=True, rate=0.0, example_inputs=x)
    assert within.plan.backward == "dense"
    ga.verify(within, x)


@pytest.mark.parametrize("check", [asserted, by_comparing_numbers])
def test_it_compiles_whole(check: Any) -> None:
    aug = ga.rewrite(Checking(check), "first", stop_grad=True, example_inputs=torch.randn(6, 4))
    fast = torch.compile(aug, fullgraph=True, backend="aot_eager")
    fast(torch.randn(6, 4)).sum().backward()
    with pytest.raises(RuntimeError):
        fast(torch.full((6, 4), torch.nan))


def test_the_error_tells_the_line_and_what_it_says() -> None:
    aug = ga.rewrite(Checking(raised), "first", example_inputs=torch.randn(6, 4))
    line = raised.__code__.co_firstlineno + 1
    with pytest.raises(
        RuntimeError, match=rf"ValueError: a number is missing \(test_checks_of_users\.py line {line}\)"
    ):
        aug.train()(torch.full((6, 4), torch.nan))


class Normalised(nn.Module):
    """Wants of a closed module's result what tensors that stand for it in a comparison have not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.probabilities = nn.Linear(4, 4), nn.Linear(4, 4), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        p = self.probabilities(self.first(x))
        assert (p.sum(-1) - 1).abs().max() < 1e-3
        if abs(p.sum().item() - len(p)) > 1e-3:
            raise ValueError("no distribution")
        return self.second(p)  # type: ignore[no-any-return]


def test_what_only_real_results_fulfil_may_be_checked() -> None:
    model, x = Normalised(), torch.randn(6, 4)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, "first", transform=lambda h: h * 1.0, example_inputs=x)
    assert not any("not compared" in note for note in aug.plan.notes)
    agrees(aug, plain, torch.randn(3, 4))


# --- what may decide more than whether to raise ---------------------------------------------------------------------


def caught(h: Tensor) -> Tensor:
    try:
        assert torch.isfinite(h).all()
    except AssertionError:
        return torch.zeros_like(h)
    return h


def of_any(h: Tensor) -> Tensor:
    assert any(row.isfinite().all() for row in (h, h.T))
    return h


def in_a_list(h: Tensor) -> Tensor:
    assert len([row for row in (h, h.T) if row.sum() > 0]) < 3
    return h


def by_either_part(h: Tensor) -> Tensor:
    assert h.sum() > 0 or h.sum() <= 0
    return h


def in_a_chain(h: Tensor) -> Tensor:
    if 1e6 < h.max() < 1e7:
        raise ValueError
    return h


def in_tuples(h: Tensor) -> Tensor:
    assert (h.sum().item(), 1) != (1e6, 1)
    return h


def with_another_end(h: Tensor) -> Tensor:
    if h.isnan().any():
        if h.shape[0] > 100:
            return h * 0.0
        raise ValueError
    return h


def suppressed(h: Tensor) -> Tensor:
    with contextlib.suppress(ValueError):
        if h.isnan().any():
            raise ValueError
    return h


class Helper:
    @staticmethod
    def check(h: Tensor) -> None:
        assert torch.isfinite(h).all()


def caught_outside(h: Tensor) -> Tensor:
    try:
        Helper.check(h)
    except AssertionError:
        return h * 0.0
    return h


class Until:
    """Ends where the data say so."""

    def __init__(self, h: Tensor) -> None:
        self.h = h

    def __iter__(self) -> Until:
        return self

    def __next__(self) -> Tensor:
        self.h = self.h * 0.5
        if self.h.abs().max() < 1e-3:
            raise StopIteration
        return self.h


def by_iteration(h: Tensor) -> Tensor:
    return sum(Until(h), start=h)


def branch(h: Tensor) -> Tensor:
    if h.isnan().any():
        h = h * 0.0
    return h


class Asking(nn.Module):
    def __init__(self, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.ask = nn.Linear(4, 4), nn.Linear(4, 4), ask

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.ask(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "ask",
    [
        *(caught, of_any, in_a_list, by_either_part, branch, in_a_chain, in_tuples, with_another_end),
        *(suppressed, caught_outside, by_iteration),
    ],
)
def test_what_may_decide_more_is_refused_with_its_line(ask: Any) -> None:
    with pytest.raises(
        CaptureError, match=r"branches on the data in .* \(test_checks_of_users\.py line \d+\)"
    ):
        ga.rewrite(Asking(ask), "first", example_inputs=torch.randn(6, 4))
