"""The FLOPs of a node; oracle: the same products written with `torch.mm`, which torch's own counter knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import graphaug as ga
from graphaug.capture.capture import capture
from graphaug.capture.inputs.signature import Signature

WIDTH = 6
X = torch.randn(4, 5, WIDTH)


def flops_of(model: nn.Module, *inputs: Any) -> list[fx.Node]:
    """The nodes of a captured model, with what each costs."""
    signature = Signature.of(model, inputs)
    return list(capture(model, (), signature, training=True, count_flops=True).graph.nodes)


def total(model: nn.Module, *inputs: Any) -> int:
    return sum(n.meta.get("flops", 0) for n in flops_of(model, *inputs))


def torchs(function: Callable[..., Any], *inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops())


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


W = torch.randn(WIDTH, WIDTH)
PRODUCTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "mv": (lambda x: x[0].mv(W[0]), lambda x: x[0] @ W[:1].T),
    "addmv": (lambda x: torch.addmv(x[0, :, 0], x[0], W[0]), lambda x: x[0] @ W[:1].T),
    "dot": (lambda x: x[0, 0].dot(W[0]), lambda x: x[0, :1] @ W[:1].T),
    "addbmm": (lambda x: torch.addbmm(torch.zeros(5, 5), x, x.mT), lambda x: x.bmm(x.mT)),
    "cdist": (
        lambda x: torch.cdist(x, x[:, :3], compute_mode="donot_use_mm_for_euclid_dist"),
        lambda x: x @ x[:, :3].mT,
    ),
    "addmm_activation": (lambda x: torch._addmm_activation(W[0], x[0], W), lambda x: x[0] @ W),
    "attention": (
        lambda x: nn.functional.scaled_dot_product_attention(x, x[:, :3], x[:, :3]),
        lambda x: (x @ x[:, :3].mT) @ x[:, :3],
    ),
    "bilinear": (
        lambda x: nn.functional.bilinear(x[0], x[0, :, :3], torch.randn(7, WIDTH, 3)),
        lambda x: x[0] @ torch.randn(WIDTH, 7 * 3),
    ),
    "conv_tbc": (
        lambda x: torch.conv_tbc(x, torch.randn(3, WIDTH, 7), torch.zeros(7)),
        lambda x: nn.functional.conv1d(x.permute(1, 2, 0), torch.randn(7, WIDTH, 3)),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_costs_what_it_does_in_torchs_own_count(name: str) -> None:
    product, by_mm = PRODUCTS[name]
    assert total(Calls(product), X) == torchs(by_mm, X) > 0


def groups_of_rows(x: Tensor) -> Tensor:
    rows = torch.randn(32, 16, dtype=torch.bfloat16) + x[0, 0, 0].bfloat16()
    ends = torch.tensor([16, 32], dtype=torch.int32)
    return torch._grouped_mm(rows, torch.randn(2, 16, 8, dtype=torch.bfloat16), offs=ends)


def test_experts_multiplied_in_groups_cost_what_their_rows_do() -> None:
    by_mm = torchs(lambda: torch.randn(32, 16) @ torch.randn(16, 8))
    assert total(Calls(groups_of_rows), X) == by_mm


RECURRENT: dict[str, tuple[nn.Module, int]] = {
    "one layer": (nn.LSTM(WIDTH, 8), 1),
    "rows first": (nn.LSTM(WIDTH, 8, batch_first=True), 1),
    "two directions": (nn.LSTM(WIDTH, 8, bidirectional=True), 2),
    "no bias": (nn.LSTM(WIDTH, 8, bias=False), 1),
    "gru": (nn.GRU(WIDTH, 8), 1),
    "rnn": (nn.RNN(WIDTH, 8), 1),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_costs_what_its_cells_do(name: str) -> None:
    """Torch's own count of an LSTM on a CPU is nothing at all."""
    layer, directions = RECURRENT[name]
    cell: Any = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[type(layer)](WIDTH, 8)
    steps = torchs(lambda: [cell(X[:, i]) for i in range(5)])
    assert total(layer, X) == directions * steps


def test_a_second_layer_takes_both_directions_of_the_first() -> None:
    first, second = nn.LSTM(WIDTH, 8, bidirectional=True), nn.LSTM(16, 8, bidirectional=True)
    apart = total(first, X) + total(second, torch.randn(4, 5, 16))
    assert total(nn.LSTM(WIDTH, 8, 2, bidirectional=True), X) == apart


WEIGHTED: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "Linear": (nn.Linear(WIDTH, 3), (X,)),
    "Bilinear": (nn.Bilinear(WIDTH, WIDTH, 3), (X, X)),
    "Conv1d": (nn.Conv1d(5, 3, 2), (X,)),
    "Conv2d": (nn.Conv2d(4, 3, 2), (X[None],)),
    "ConvTranspose1d": (nn.ConvTranspose1d(5, 3, 2), (X,)),
    "LSTM": (nn.LSTM(WIDTH, 3), (X,)),
    "LSTM, projected": (nn.LSTM(WIDTH, 4, proj_size=3), (X,)),
    "GRU": (nn.GRU(WIDTH, 3), (X,)),
    "RNN": (nn.RNN(WIDTH, 3), (X,)),
    "LSTMCell": (nn.LSTMCell(WIDTH, 3), (X[0],)),
    "GRUCell": (nn.GRUCell(WIDTH, 3), (X[0],)),
    "RNNCell": (nn.RNNCell(WIDTH, 3), (X[0],)),
    "MultiheadAttention": (nn.MultiheadAttention(WIDTH, 2), (X, X, X)),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(WIDTH, 2), (X,)),
    "TransformerDecoderLayer": (nn.TransformerDecoderLayer(WIDTH, 2), (X, X)),
}


class Inside(nn.Module):
    """A module with other modules around it: it stays closed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


@pytest.mark.parametrize("name", WEIGHTED)
def test_no_module_of_torch_that_multiplies_matrices_is_free(name: str) -> None:
    module, inputs = WEIGHTED[name]
    assert total(Inside(module), *inputs) > 0


@torch.library.custom_op("graphaug_tests::scan", mutates_args=())
def scan(x: Tensor) -> Tensor:
    """An operator of somebody else, whose cost nobody knows."""
    return x.cumsum(1)


@scan.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


scan.register_autograd(lambda _, g: g.flip(1).cumsum(1).flip(1))


class Scanned(nn.Module):
    """Most of its work is in an operator that torch knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = Calls(scan), nn.Linear(WIDTH, 64)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x * self.scale))


def test_a_backward_that_may_save_more_than_is_known_says_so() -> None:
    plan = ga.rewrite(Scanned(), at="inner", stop_grad=True, example_inputs=X, dry_run=True)
    assert plan.backward == "dense"
    assert plan.reason == (
        "what it saves cannot be told without the FLOPs of graphaug_tests::scan, for which torch has no formula; "
        "backward='sparse' splits the rows"
    )


def test_what_is_not_counted_is_named_where_it_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Calls(scan))
    plan = ga.rewrite(model, at="1", stop_grad=True, example_inputs=X, dry_run=True)
    assert plan.backward == "sparse"
    assert plan.reason.endswith(
        "without the FLOPs of graphaug_tests::scan, for which torch has no formula"
    ), plan.reason


class NumpyInside(nn.Module):
    """Fakes do not do for it behind its product, so that it runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h + float(h.detach().numpy().sum())


def test_what_runs_again_on_real_tensors_is_counted_once() -> None:
    model = NumpyInside()
    assert total(Inside(model), X) == torchs(model.linear, X)


class Forces(nn.Module):
    """A gradient inside of a forward, as for forces or the residual of an equation, which torch cannot count."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        energy = self.net(x)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return torch.cat([energy, force], -1)


def test_what_cannot_be_counted_is_not_refused() -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), Forces(), nn.Linear(6, 2)), torch.randn(4, 5)
    aug = ga.rewrite(model, "1", stop_grad=True, subset=0.0, example_inputs=x)
    torch.testing.assert_close(aug(x), model(x), rtol=0, atol=0)


def test_counting_needs_to_know_of_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's counter follows modules by hooks, which fail in reversible layers; a total needs none."""

    def fails(self: Any) -> Any:
        raise AssertionError("Expected gradient function to be set")

    monkeypatch.setattr("torch.utils.module_tracker.ModuleTracker.__enter__", fails)
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, 2))
    assert total(model, X) == 2 * 4 * 5 * (WIDTH * 8 + 8 * 2)
