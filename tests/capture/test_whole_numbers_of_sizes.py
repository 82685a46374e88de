"""Shares of the batch size as whole numbers, as of the hardest samples. Oracle: the model, at other batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Hardest(nn.Module):
    """The mean loss of a share of the samples: online hard example mining."""

    def __init__(self, share: Callable[[int], int]) -> None:
        super().__init__()
        self.inner, self.head, self.share = nn.Linear(8, 8), nn.Linear(8, 4), share

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(self.head(self.inner(x)), y, reduction="none")
        return losses.topk(self.share(losses.shape[0])).values.mean()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator), torch.randint(0, 4, (rows,), generator=generator)


SHARES: dict[str, Callable[[int], int]] = {
    "round": lambda n: round(n * 0.5),
    "ceil": lambda n: math.ceil(n / 2),
    "floor": lambda n: math.floor(0.7 * n),
    "trunc": lambda n: math.trunc(0.7 * n),
    "at least one": lambda n: max(1, math.floor(n * 0.7)),
    "of what is whole": lambda n: math.floor(n) - round(n // 2) + math.ceil(n % 2),
}
shares = pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)


@shares
def test_a_share_is_that_of_every_batch(share: Callable[[int], int]) -> None:
    model = Hardest(share)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=batch(4))
    for rows in (4, 7, 10, 13, 30):
        for mode in (True, False):
            assert torch.equal(aug.train(mode)(*batch(rows)), model.train(mode)(*batch(rows)))


@shares
def test_compiled_whole_too(share: Callable[[int], int]) -> None:
    torch._dynamo.reset()
    model = Hardest(share)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=batch(4)).train()
    run = torch.compile(aug, fullgraph=True, backend="aot_eager")
    for rows in (4, 7, 10, 25):
        torch.testing.assert_close(run(*batch(rows)), model(*batch(rows)))


def test_int_holds_for_the_sizes_of_its_number_and_says_what_to_write_instead() -> None:
    """Python makes a number of its own of what ``int`` is given: 4 and 5 samples both have two in a half."""
    model = Hardest(lambda n: int(0.5 * n))
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=batch(4)).train()
    for rows in (4, 5):
        assert torch.equal(aug(*batch(rows)), model(*batch(rows)))
    said = r"trunc\(0\.5 \* .*\) == 2 \(.* line \d+\), but this call has 3\. Of int\(…\) .* write math\.floor\(…\)"
    with pytest.raises(AssumptionViolated, match=said):
        aug(*batch(7))


@pytest.mark.parametrize("made", [round, math.ceil, math.floor, math.trunc, int])
def test_of_data_none_is_made(made: Callable[[Any], int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[: made(x.max().item())]

    with pytest.raises(ga.GraphaugError, match="needs the number in"):
        ga.rewrite(Net(), at="inner", rate=0.0, example_inputs=torch.randn(4, 8))
