"""What a plan says of a value at the cut whose size nobody knows without the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import InvalidOption, SparseBackwardError


class Counts(nn.Module):
    """It returns as many rows as it gets, and looks for some on the way, as many as there are."""

    def forward(self, x: Tensor) -> Tensor:
        (x > 0).nonzero()
        return x.clone()


@pytest.mark.parametrize("at", ["1", "2"])
def test_a_size_that_depends_on_data_is_the_reason(at: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), Counts(), nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(6, 4)
    why = r"the size of the value at the cut is not known: it depends on the data in '1' \(.*nonzero"
    plan = ga.rewrite(model, at, stop_grad=True, example_inputs=x, dry_run=True)
    assert plan.backward == "dense"
    with pytest.raises(SparseBackwardError, match=why):
        ga.rewrite(model, at, stop_grad=True, backward="sparse", example_inputs=x)
    with pytest.raises(InvalidOption, match=why):
        ga.rewrite(model, at, views=2, example_inputs=x)
