"""Steering and patching against forward hooks on a transformer block, as the papers' code does them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphaug.augment.transform import Context, Transform
from graphaug.augment.transforms.steer import Add, Replace
from graphaug.errors import BatchError, InvalidOption


class Model(nn.Module):
    """Two layers, with a transform between them if there is one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
        self.second = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)

    def forward(
        self, x: Tensor, transform: Transform | None = None, context: Context | None = None
    ) -> Tensor:
        h = self.first(x)
        if transform is not None and context is not None:
            h = transform(h, transform.draw(h, context))
        return self.second(h)


def hooked(model: Model, x: Tensor, hook: Any) -> Tensor:
    handle = model.first.register_forward_hook(lambda module, args, out: hook(out))
    try:
        return model(x)
    finally:
        handle.remove()


def assert_same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    cotangent = torch.randn_like(ours)
    one, other = (torch.autograd.grad(out, inputs, cotangent, retain_graph=True) for out in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def inputs(rows: int = 3) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, rows, 5, 8, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def test_activation_addition_is_a_hook_that_adds_a_difference() -> None:
    """Turner et al. 2023: the difference of two inputs' activations, times a coefficient, at the first tokens."""
    model, (x, y) = Model(), inputs()
    with torch.no_grad():
        difference = model.first(y[:1])[0] - model.first(y[1:2])[0]

    def hook(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, [0, 1]] = out[:, [0, 1]] + 4.0 * difference[[0, 1]]
        return out

    add = Add(difference, scale=4.0, positions=[0, 1])
    assert_same(model(x, add, Context()), hooked(model, x, hook), x)


@pytest.mark.parametrize("rows", [3, 1])
def test_patching_is_a_hook_that_writes_another_inputs_activation(rows: int) -> None:
    """Meng et al. 2022: a token's state of another run; the gradient goes on into that run."""
    model, (x, y) = Model(), inputs()
    source = model.first(y)[:rows]

    def hook(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, -1] = source[:, -1]
        return out

    assert_same(model(x, Replace(positions=[-1]), Context(source=source)), hooked(model, x, hook), x, y)


def test_a_whole_row_of_another_input_makes_the_result_that_inputs() -> None:
    model, (x, y) = Model(), inputs()
    patched = model(x, Replace(), Context(source=model.first(y)))
    assert torch.equal(patched, model(y))
    assert_same(
        model(x, Add(), Context(source=model.first(y))),
        hooked(model, x, lambda h: h + model.first.forward(y)),
        x,
        y,
    )


@settings(max_examples=30)
@given(
    kind=st.sampled_from([Add, Replace]),
    shape=st.sampled_from([(2, 4), (2, 3, 4), (2, 4, 3, 3), (2, 4, 2, 2, 3)]),
    whole=st.booleans(),
)
def test_a_vector_is_a_row_or_one_number_a_channel(kind: Any, shape: tuple[int, ...], whole: bool) -> None:
    rows = torch.randn(shape)
    vector = torch.randn(shape[1:] if whole else (4,))
    transform = kind(vector)
    out = transform(rows, transform.draw(rows))
    channel = 1 if len(shape) > 3 else -1
    expected = vector if whole else vector.view(4, *[1] * (len(shape) - 2)) if channel == 1 else vector
    assert torch.equal(out, rows + expected if kind is Add else expected.expand(shape))


def test_the_vector_is_a_copy_and_moves_with_the_module() -> None:
    vector = torch.ones(4).requires_grad_()
    add = Add(vector)
    with torch.no_grad():
        vector.zero_()
    assert add.vector is not None
    assert add.vector.sum() == 4
    assert not add.vector.requires_grad
    assert not add.state_dict()
    assert add.to(torch.float64).vector.dtype == torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Add(torch.ones(3, dtype=torch.long)), "is no floating-point tensor"),
        (lambda: Replace([1.0, 2.0]), "is no floating-point tensor"),
        (lambda: Add(scale=float("nan")), "scale=nan is outside"),
        (lambda: Add(positions=[0.5]), "positions=.* give a list of whole numbers"),
        (lambda: Replace(positions=[True]), "positions=.* give a list of whole numbers"),
        (lambda: Replace(positions=-1), "positions=-1: give a list of whole numbers"),
        (lambda: Add(positions=slice(0, 2)), r"positions=slice.*: give a list of whole numbers"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "context", "message"),
    [
        (Add(), Context(), "Add without a vector needs the activation of another input"),
        (Replace(), Context(source=torch.zeros(2, 5, 4)), "does not fit rows"),
        (Replace(), Context(source=torch.zeros(3, 5, 3)), "does not fit rows"),
        (Add(torch.ones(5)), Context(), "is neither a row of .* nor its 4 channels"),
        (Add(torch.ones(4), positions=[5]), Context(), r"positions \[5\] are outside the 5 tokens"),
        (Add(torch.ones(4), positions=[-6, 1]), Context(), r"positions \[-6\] are outside"),
    ],
)
def test_what_does_not_fit_is_refused(transform: Transform, context: Context, message: str) -> None:
    rows = torch.zeros(3, 5, 4)
    with pytest.raises(BatchError, match=message):
        transform(rows, transform.draw(rows, context))


def test_positions_are_of_tokens() -> None:
    rows = torch.zeros(2, 4)
    add = Add(torch.ones(4), positions=[0])
    with pytest.raises(BatchError, match="positions are tokens"):
        add(rows, add.draw(rows))
