"""A size that is spelled in a message is not relied on; spelled anywhere else, it is. Oracle: the model."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

logger = logging.getLogger("graphaug.tests.messages")
FACTORS = {"6x6": 2.0, "8x8": 3.0}


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def out(self, h: Tensor, key: Any) -> Tensor:
        return self.b(h * FACTORS.get(key, 1.0))


class BehindAssert(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        assert h.dim() == 4, "an image, please"
        key = f"{h.shape[2]}x{h.shape[3]}"
        return self.out(h, key)


class BehindLog(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        logger.debug("an image")
        key = str(h.shape[2]) + "x" + repr(h.shape[3])
        return self.out(h, key)


class BehindRaise(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.dim() != 4:
            raise ValueError(f"no image: {h.dim()}")
        key = "%sx%s" % (h.shape[2], h.shape[3])  # noqa: UP031
        return self.out(h, key)


class OnOneLine(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        # fmt: off
        logger.debug("an image"); key = f"{h.shape[2]}x{h.shape[3]}"  # noqa: E702
        # fmt: on
        return self.out(h, key)


class Tells(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        logger.warning("of %s pixels", h.shape[2])
        logger.warning(
            f"of {h.shape[2]} pixels, and "
            f"{h.shape[3]}"
        )  # fmt: skip
        warnings.warn(f"{h.shape[2]} pixels", stacklevel=1)
        torch._assert(h.dim() == 4, f"{h.shape[2]} pixels")
        assert h.shape[1] == 4, f"{h.shape[2]} pixels"
        return self.out(h, None)


@pytest.mark.parametrize("cls", [BehindAssert, BehindLog, BehindRaise, OnOneLine])
def test_a_size_that_is_spelled_behind_a_message_is_relied_on(cls: type[Base]) -> None:
    model = cls()
    aug = ga.rewrite(model, at="a", rate=0.0, example_inputs=torch.randn(4, 2, 6, 6))
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(aug(x), model(x))
    with pytest.raises(AssumptionViolated, match=r"shape\[2\] == 6"):
        aug(torch.randn(4, 2, 8, 8))


@pytest.mark.filterwarnings("ignore")
def test_a_size_in_a_message_may_be_another() -> None:
    model = Tells()
    aug = ga.rewrite(model, at="a", rate=0.0, example_inputs=torch.randn(4, 2, 6, 6))
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(aug(x), model(x))


class Pads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        missing = (4 - h.shape[-1] % 4) % 4
        return self.b(nn.functional.pad(h, (0, missing)) if missing else h)


def test_an_assumption_is_spelled_as_it_is_reckoned() -> None:
    plan = ga.rewrite(Pads(), at="a", example_inputs=torch.randn(4, 3, 8), dry_run=True)
    (said,) = [a for a in plan.assumptions if "% 4" in a]
    assert said == "(4 - a.shape[2] % 4) % 4 == 0"
    assert eval(said.replace("a.shape[2]", "8"))
    assert not eval(said.replace("a.shape[2]", "9"))


class Looks(Pads):
    """Asks a product for its size."""

    def forward(self, x: Tensor) -> Tensor:
        h = (self.a(x) * x.shape[1]).tanh()
        return self.b(h * 2 if (h + x.shape[1]).shape[-1] > 4 else h)


def test_what_is_asked_of_a_product_is_spelled_in_brackets() -> None:
    (said,) = ga.rewrite(Looks(), at="a", example_inputs=torch.randn(4, 3, 8), dry_run=True).assumptions
    assert str(said) == "((a * x.shape[1]).tanh() + x.shape[1]).shape[2] > 4"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h + 1 if torch.isfinite(h).all() else h)


def test_what_depends_on_data_is_named_as_the_plan_names_it() -> None:
    x = torch.randn(4, 5)
    for call in (
        lambda m: ga.sites(m, example_inputs=x),
        lambda m: ga.rewrite(m, "body.0", example_inputs=x),
    ):
        with pytest.raises(CaptureError, match=r"branches on the data in isfinite\(body\.1\)\.all\(\)"):
            call(Branches())
