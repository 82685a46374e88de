"""Checks of data in a forward: the rewritten model raises where the model does, in every form of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Finite(nn.Module):
    """A layer that wants finite numbers, as the models of transformers check sizes and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all_with(ValueError, x.isfinite(), lambda: f"{x.sum()} is not finite")
        torch._check(x.shape[0] > 0)
        return self.layer(x)


class Checking(nn.Module):
    """The same in the code that is opened."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.first, self.second, self.check = nn.Linear(4, 4), nn.Linear(4, 4), check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x < 100)
        return self.second(torch.tanh(self.first(x)))


def torch_compilable_check(cond: Tensor, message: str) -> None:
    """Raises by data, with a text that shows some, as the function of that name in transformers does."""
    torch._check_tensor_all_with(ValueError, cond, lambda: message)


def by_keyword(x: Tensor) -> None:
    torch_compilable_check(x < 100, message=f"{x.max()} in {x.shape[0]} rows is too large, above {100}")


def by_position(x: Tensor) -> None:
    torch_compilable_check(x < 100, f"{x.max()} in {x.shape[0]} rows is too large, above {100}")


class Says(nn.Module):
    """A check whose text is made of data and sizes before anyone knows whether it is needed."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.first, self.second, self.check = nn.Linear(4, 4), nn.Linear(4, 4), check

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.check(x)
        return self.second(h)


@pytest.mark.parametrize("check", [by_keyword, by_position])
def test_the_text_of_a_check_shows_no_number_of_another_call(check: Any) -> None:
    model, x = Says(check), torch.randn(6, 4)
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=x)
    torch.testing.assert_close(aug(torch.cat([x, x])), model(torch.cat([x, x])), rtol=0, atol=0)
    assert not [a for a in aug.plan.assumptions if "shape" in a]
    with pytest.raises((RuntimeError, ValueError)) as caught:
        aug(x[:4] + 1000)
    said = str(caught.value)
    assert "Fake" not in said
    assert "6" not in said


TOO_LARGE: Any = (
    (lambda: "too large") if torch.__version__.startswith("2.11") else "too large"
)  # which takes no text

CHECKS = {
    "a check of a tensor": torch._check_tensor_all,
    "with an error": lambda cond: torch._check_tensor_all_with(ValueError, cond, TOO_LARGE),
    "with a message that is made": lambda cond: torch._check_tensor_all(cond, lambda: f"{cond.sum()} rows"),
}


@pytest.mark.parametrize("backward", ["sparse", "dense"])
@pytest.mark.parametrize("name", CHECKS)
def test_opened_code_checks_in_every_call(name: str, backward: Any) -> None:
    model, x = Checking(CHECKS[name]), torch.randn(6, 4)
    aug = ga.rewrite(model, "first", stop_grad=True, backward=backward, example_inputs=x)
    ga.verify(aug, x)
    for training in (True, False):
        model.train(training)
        aug.train(training)
        with pytest.raises((RuntimeError, ValueError)):
            model(x + 1000)
        with pytest.raises((RuntimeError, ValueError)):
            aug(x + 1000)
    assert torch.equal(aug(x), model(x))


def test_a_closed_module_may_check() -> None:
    model, x = nn.Sequential(Finite(), nn.Linear(4, 4), Finite()), torch.randn(6, 4)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse"
    ga.verify(aug, x)
    with pytest.raises(ValueError, match="is not finite"):
        aug(x / 0)
    assert ga.rewrite(model, "0", dry_run=True).sites  # where the examples are found, too


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_it_compiles_whole(name: str) -> None:
    x = torch.randn(6, 4)
    aug = ga.rewrite(Checking(CHECKS[name]), "first", stop_grad=True, example_inputs=x)
    torch.compile(aug, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert aug.second.weight.grad is not None


class OfHidden(nn.Module):
    """A check of what trained layers in front of the site compute."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.check = check

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.check(h)
        return self.last(self.inner(h))


@pytest.mark.parametrize(
    "check",
    [
        lambda h: torch._assert_async(torch.isfinite(h).all(), "not finite"),
        lambda h: torch._assert(torch.isfinite(h).all(), "not finite"),
        lambda h: torch._check_tensor_all(torch.isfinite(h)),
    ],
    ids=["_assert_async", "_assert", "_check_tensor_all"],
)
def test_a_check_in_front_of_the_site_is_made(check: Any) -> None:
    x = torch.randn(6, 4)
    aug = ga.rewrite(OfHidden(check), "inner", stop_grad=True, example_inputs=x).train()
    aug(x)
    with pytest.raises((RuntimeError, AssertionError)):
        aug(x * float("nan"))


def asserting(h: Tensor) -> None:  # which pytest writes anew, in parts that nothing tells
    assert torch.isfinite(h).all(), "not finite"


def gathering(h: Tensor) -> None:
    if not all(torch.isfinite(row).all() for row in (h, h.T)):
        print("soon")
        raise ValueError("not finite")


def deciding(h: Tensor) -> None:
    if h.max() > 1000:
        print("large")


@pytest.mark.parametrize(("check", "advised"), [(asserting, 1), (gathering, 1), (deciding, 0)])
def test_what_only_checks_is_told_how_a_graph_checks(check: Any, advised: int) -> None:
    with pytest.raises(ga.GraphaugError, match="branches on the data") as caught:
        ga.rewrite(OfHidden(check), "inner", example_inputs=torch.randn(6, 4))
    assert str(caught.value).count("write torch._assert_async(condition") == advised
