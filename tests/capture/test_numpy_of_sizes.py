"""What numpy computes of sizes. Oracle: the model, at another batch size too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A forward with a step of the case's."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.step = nn.Linear(6, 6), step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.inner(x))


OF_FEATURES = {
    "sqrt": lambda h: h / np.sqrt(h.shape[-1]),
    "log1p": lambda h: h * np.log1p(h.shape[-1]),
    "array": lambda h: h * torch.tensor(np.arange(h.shape[-1]) / h.shape[-1]).float(),
    "compared": lambda h: h * np.maximum(h.shape[-1], 2) if np.greater(h.shape[-1], 3) else h,
    "in single precision": lambda h: h + np.float32(3) / h.shape[-1] - np.int64(2) ** h.shape[-1],
    "added to an array": lambda h: h * (np.zeros(3) + h.shape[-1]).sum(),
}
OF_THE_BATCH = {
    "sqrt of the batch": lambda h: h / np.sqrt(h.shape[0]),
    "product": lambda h: h * (np.float64(2.0) * h.shape[0]),
    "sum": lambda h: h * (np.sqrt(h.shape[0]) * np.float64(2) + np.int64(1)),
    "quotient": lambda h: h * np.divide(h.shape[0], np.int64(3)),
}


@pytest.mark.parametrize(
    "step", [*OF_FEATURES.values(), *OF_THE_BATCH.values()], ids=[*OF_FEATURES, *OF_THE_BATCH]
)
@pytest.mark.parametrize("rows", [4, 7])
def test_sizes_of_features_and_arithmetic_of_the_batch(step: Any, rows: int) -> None:
    model = Net(step)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    x = torch.randn(rows, 6)
    for mode in (True, False):
        assert torch.equal(aug.train(mode)(x), model.train(mode)(x))


def test_what_numpy_makes_of_the_batch_is_relied_on() -> None:
    model = Net(lambda h: h * np.log1p(h.shape[0]))
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()
    assert torch.equal(aug(X), model(X))
    with pytest.raises(AssumptionViolated, match=r"4 .*, but this call has 7"):
        aug(torch.randn(7, 6))
