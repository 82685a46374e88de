"""Tensors that a forward reads from its file or a closure: they are no part of the model, rewritten or not.

Oracle: the model itself, moved and converted alike.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga

TABLE = torch.linspace(0.1, 0.7, 8)


class Reads(nn.Module):
    """Adds up a table of this file in the table's own precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * TABLE.cumsum(0).to(x.dtype))


@pytest.mark.few(2)
@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_conversion_leaves_a_table_of_the_file_alone(stop_grad: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Reads(), torch.randn(4, 8)
    aug = ga.rewrite(copy.deepcopy(model), "first", rate=0.0, stop_grad=stop_grad, example_inputs=x)
    aug.to(dtype), model.to(dtype)
    assert TABLE.dtype is torch.float32
    # a sparse step multiplies fewer rows at once, for which a processor may take another kernel
    torch.testing.assert_close(aug(x.to(dtype)), model(x.to(dtype)))
    assert {name for name, _ in aug.named_buffers()} == {"deep_augment.subset", "deep_augment.rate"}


def test_a_table_that_is_written_to_is_current_compiled_and_not() -> None:
    model, x = Reads(), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 2.0, 0.5):
        TABLE.mul_(factor)
        assert torch.equal(aug(x), model(x))
        assert torch.allclose(compiled(x), model(x))


def test_a_table_goes_with_copies_files_and_exports() -> None:
    model, x = Reads(), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    for again in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert torch.equal(again(x), model(x))
    exported = torch.export.export(aug.eval(), (x,)).module()
    assert torch.equal(exported(x), model(x))
