"""Row provenance: independence is proved where it holds, and refused wherever rows meet, however well it is hidden."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.proof.independence.places import Proof, Rows
from graphaug.proof.independence.rows import prove

Call = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """A linear layer and a function, on (rows, 5, 6)."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def ask(model: nn.Module, *inputs: Tensor, dims: Any = 0) -> Proof:
    """Prove a module's forward, samples along the given dimension of each input."""
    at = dims if isinstance(dims, tuple) else (dims,) * len(inputs)
    named = {f"x{i}": t for i, t in enumerate(inputs)}
    counted = {id(t): d for t, d in zip(inputs, at, strict=True) if d is not None}
    return prove(model.train(), lambda values: [model(*values.values())], named, counted)[0]


def of(function: Call, *shape: int, dim: int = 0) -> Proof:
    return ask(Plain(function), torch.randn(shape or (4, 5, 6)), dims=dim)


MOVES: dict[str, tuple[Call, Rows]] = {
    "as it is": (torch.tanh, Rows(0)),
    "sequence first": (lambda x: x.transpose(0, 1), Rows(1)),
    "last": (lambda x: x.permute(1, 2, 0), Rows(2)),
    "folded": (lambda x: x.reshape(-1, 6), Rows(0, 1, 5)),
    "folded the other way": (lambda x: x.transpose(0, 1).reshape(-1, 6), Rows(0, 5, 1)),
    "folded and back": (lambda x: x.reshape(-1, 6).view(x.shape[0], 5, 6), Rows(0)),
    "two views": (lambda x: torch.cat([x, x.tanh()]), Rows(0, 2, 1)),
    "one of two views": (lambda x: torch.cat([x, x.tanh()])[: x.shape[0]], Rows(0)),
    "views interleaved": (lambda x: torch.stack([x, -x], 1).flatten(0, 1), Rows(0, 1, 2)),
    "every other of them": (lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2], Rows(0)),
    "with features": (lambda x: x.permute(1, 0, 2).reshape(5, -1), Rows(1, 1, 6)),
    "windows": (lambda x: x.unfold(1, 3, 1).permute(0, 1, 3, 2).reshape(-1, 3, 6), Rows(0, 1, 3)),
    "by its own number": (lambda x: x[torch.arange(x.shape[0]), x.sum(2).argmax(1)], Rows(0)),
    "repeated": (lambda x: x.repeat_interleave(2, 0), Rows(0, 1, 2)),
    "a class token": (lambda x: torch.cat([torch.ones(1, 1, 6).expand(x.shape[0], -1, -1), x], 1), Rows(0)),
    "drawn for each": (lambda x: x * torch.rand(x.shape[0], 1, 1), Rows(0)),
    "drawn for each frame": (lambda x: F.dropout(x.flatten(0, 1)) + x.flatten(0, 1).new_empty(
        x.shape[0] * 5, 1).bernoulli_(0.5), Rows(0, 1, 5)),
    "a random choice of tokens": (
        lambda x: x.gather(1, torch.rand(x.shape[0], 5).argsort(1)[:, :2, None].expand(-1, -1, 6)), Rows(0)),
    "written in place": (lambda x: x.clone().mul_(2).index_fill_(1, torch.tensor([0]), 0.0), Rows(0)),
    "assembled": (lambda x: _assembled(x), Rows(0)),
    "masked": (lambda x: x.masked_fill(x > 0, 0.0), Rows(0)),
    "mask assigned": (lambda x: _assigned(x), Rows(0)),
    "attention": (lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0], Rows(0)),
    "instance norm": (lambda x: F.instance_norm(x), Rows(0)),
    "padded": (lambda x: F.pad(x, (0, 2, 1, 0)), Rows(0)),
    "fft": (lambda x: torch.fft.rfft(x, dim=1).abs(), Rows(0)),
    "distances of tokens": (lambda x: torch.cdist(x, x), Rows(0)),
    "solved": (lambda x: torch.linalg.solve(x[:, :, :5] + 9 * torch.eye(5), x), Rows(0)),
    "vmap": (lambda x: torch.vmap(lambda t: t - t.mean(0))(x), Rows(0)),
    "squeezed in place": (lambda x: x.tanh().unsqueeze_(0).squeeze_(0), Rows(0)),
    "put in behind": (lambda x: x.tanh().unsqueeze_(0), Rows(1)),
    "transposed in place": (lambda x: x.tanh().transpose_(0, 1), Rows(1)),
    "searched": (lambda x: torch.searchsorted(x.sort(2).values, x) * x, Rows(0)),
    "on a diagonal": (lambda x: torch.diagonal_scatter(x, x[:, 0, :5], 0, 1, 2), Rows(0)),
    "turned": (lambda x: torch.rot90(x, 1, (1, 2)), Rows(0)),
    "turned with the rows": (lambda x: torch.rot90(x, 1, (0, 1)), Rows(1)),
    "turned back": (lambda x: torch.rot90(torch.rot90(x, 1, (0, 1)), -1, (0, 1)), Rows(0)),
    "only looked at": (lambda x: _logged(x), Rows(0)),
    "in place, by operations that torch does not tag": (lambda x: x.clone().abs_().copysign_(x).gt_(0), Rows(0)),
    "checked": (lambda x: _checked(x), Rows(0)),
}  # fmt: skip


def _assembled(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    out[:, 0].copy_(x.mean(1))
    return out


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.5
    return y


def _logged(x: Tensor) -> Tensor:
    x.mean()
    return x * 2


def _checked(x: Tensor) -> Tensor:
    torch._check_tensor_all(x.isfinite())
    return x * 2


@pytest.mark.parametrize("name", MOVES)
def test_rows_are_found_where_they_lie(name: str) -> None:
    function, place = MOVES[name]
    proof = of(function)
    assert proof.verdict == "proved", proof
    assert proof.place == place


@pytest.mark.long
def test_the_place_is_that_of_the_definition() -> None:
    """By the data: the slices named by the place are those that change with a sample."""
    x = torch.randn(4, 5, 6).double()
    for name, (function, _) in MOVES.items():
        model = Plain(function).double()
        place = ask(model, x).place
        assert place is not None
        for b in range(4):
            other = x.clone()
            other[b] = torch.randn(5, 6)
            torch.manual_seed(0)
            before = model(x)
            torch.manual_seed(0)
            moved = (before - model(other)).abs().movedim(place.dim, 0).flatten(1).amax(1) > 1e-9
            index = torch.arange(place.outer * 4 * place.inner).view(place.outer, 4, place.inner)
            own = torch.zeros_like(moved)
            own[index[:, b].flatten()] = True
            assert not bool((moved & ~own).any()), (name, b)


def _written_over(x: Tensor) -> Tensor:
    y = x.clone()
    view = y[:, 0]
    y.copy_(x.flip(0))
    return view


def _neighbours(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:] += y[:-1]
    return y


def _constant_filled(x: Tensor) -> Tensor:
    table = torch.zeros(6)
    part = table[:3]
    table.copy_(x.mean((0, 1)))
    return x[..., :3] + part


MEET: dict[str, Call] = {
    "centred": lambda x: x - x.mean(0),
    "straight through": lambda x: x + (x.mean(0) - x.mean(0).detach()),
    "roll": lambda x: torch.roll(x, 1, 0),
    "softmax": lambda x: torch.softmax(x, 0),
    "sort": lambda x: torch.sort(x, 0).values,
    "cumulative": lambda x: torch.cumsum(x, 0),
    "transposed product": lambda x: (x[:, 0] @ x[:, 0].T) @ x[:, 0],
    "shuffled": lambda x: x[torch.randperm(x.shape[0])],
    "half and half": lambda x: torch.cat(x.chunk(2)[::-1]),
    "row numbers": lambda x: x + torch.arange(x.shape[0])[:, None, None],
    "one over rows": lambda x: x / x.shape[0],
    "root of rows": lambda x: x * x.shape[0] ** -0.5,
    "torn": lambda x: x.reshape(x.shape[1], x.shape[0], -1),
    "first row": lambda x: x - x[:1],
    "one draw": lambda x: x * torch.rand(6),
    "dropout of a table": lambda x: x + F.dropout(torch.ones(5, 6), 0.5),
    "own generator": lambda x: x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0)),
    "attention over rows": lambda x: F.scaled_dot_product_attention(*[x.transpose(0, 1)[None]] * 3)[0].transpose(0, 1),
    "batch norm": lambda x: F.batch_norm(x.transpose(1, 2), None, None, training=True).cumsum(0),
    "alias written": _written_over,
    "neighbours written": _neighbours,
    "constant written": _constant_filled,
    "threshold": lambda x: x - x.mean(0) * (x.amax() > 100),
    "norm of the batch": lambda x: x / x.norm(),
    "index of the largest": lambda x: x[x.sum((1, 2)).argsort()],
    "einsum": lambda x: torch.einsum("bld,cld->bc", x, x),
    "squeezed": lambda x: x.squeeze(),
    "one by one": lambda x: torch.stack([row - row.mean() for row in x]),
    "in ones": lambda x: torch.cat([part.tanh() for part in x.split(1)]),
    "sum of products": lambda x: torch.addbmm(torch.zeros(5, 5), x, x.transpose(1, 2)) + x[..., :5],
    "searched among others": lambda x: torch.searchsorted(x.flatten().sort().values, x) * x,
    "turned over rows": lambda x: torch.rot90(x, 2, (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEET)
def test_rows_that_meet_are_found_and_named(name: str) -> None:
    proof = of(MEET[name])
    assert proof.verdict == ("unknown" if name == "own generator" else "coupled"), proof
    assert proof.meeting is not None
    if name != "own generator":
        assert "test_rows.py line" in str(proof.meeting)


def _at_one_size(x: Tensor) -> Tensor:
    return x - x.mean(0) if x.shape[0] == 5 else x


def _by_parity(x: Tensor) -> Tensor:
    return x - x.mean(0) if x.shape[0] % 2 else x


def _above(x: Tensor) -> Tensor:
    return x - x.mean(0) if bool(x.abs().max() > 50) else x


def _row_above(x: Tensor) -> Tensor:
    return x - x.mean(0) if torch.equal(x.clamp(max=50), x) else x


def _few(x: Tensor) -> Tensor:
    return x - x.mean(0) if len(x) < 4 else x


KEPT: list[Tensor] = []


def _kept(x: Tensor) -> Tensor:
    KEPT.append(x.pow(2).mean(1))
    return x


def _seeded(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x + torch.randn_like(x)


def _python(x: Tensor) -> Tensor:
    return x * random.random()


def _hooked(x: Tensor) -> Tensor:
    y = x * 1
    y.register_hook(lambda g: g - g.mean(0))
    return y


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g - g.mean(0)


@pytest.mark.parametrize(
    ("function", "verdict", "said"),
    [
        (_at_one_size, "coupled", "Eq(rows, 5) (test_rows.py line"),
        (_by_parity, "coupled", "test_rows.py line"),
        (_few, "coupled", "asks for the number of rows (test_rows.py line"),
        (_above, "coupled", "max runs over the rows"),
        (_row_above, "coupled", "decides by a value of the batch"),
        (_kept, "coupled", "kept outside"),
        (_seeded, "coupled", "seeds torch's generator"),
        (_python, "coupled", "Python's or numpy's generator"),
        (_hooked, "unknown", "its own backward"),
        (_Backward.apply, "unknown", "backward of its own"),
        (lambda x: x[x > 0], "unknown", "by a mask"),
    ],
)
def test_what_no_operation_shows_is_no_proof(function: Call, verdict: str, said: str) -> None:
    proof = of(function)
    KEPT.clear()
    assert proof.verdict == verdict, proof
    assert said in str(proof)


class Counts(nn.Module):
    """Couples its rows from the hundredth call on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls, self.box = where, 0, type("Box", (), {})()
        self.box.calls = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "attribute":
            self.calls += 1
            late = self.calls > 100
        elif self.where == "box":
            self.box.calls += 1
            late = self.box.calls > 100
        else:
            self.seen += 1
            return torch.where(self.seen > 100, x - x.mean(0), x)
        return x - x.mean(0) if late else x


@pytest.mark.parametrize("where", ["attribute", "box", "buffer"])
def test_what_begins_later_is_found_by_its_counter(where: str) -> None:
    model = Counts(where)
    proof = ask(model, torch.randn(4, 6))
    assert proof.verdict == "coupled", proof
    assert (model.calls, model.box.calls, int(model.seen)) == (0, 0, 0)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_gate_in_a_buffer_is_no_proof_whatever_it_holds(gate: float) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gate", torch.tensor(gate))

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.gate else x

    proof = ask(Gated(), torch.randn(4, 6))
    assert (proof.verdict, "parameter or buffer" in str(proof)) == ("coupled", True)


def test_gradients_scaled_by_the_batch_are_found() -> None:
    ids = torch.randint(0, 9, (4, 5))
    assert ask(nn.Embedding(9, 6), ids).verdict == "proved"
    assert ask(nn.Embedding(9, 6, scale_grad_by_freq=True), ids).verdict == "coupled"
    assert ask(nn.Embedding(9, 6, max_norm=1.0), ids).verdict == "coupled"


@pytest.mark.long
def test_layers_of_torch() -> None:
    image, tokens = torch.randn(4, 6, 8, 8), torch.randn(5, 4, 6)
    for layer in (
        nn.Conv2d(6, 3, 3),
        nn.GroupNorm(2, 6),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.PReLU(),
    ):
        assert ask(layer, image).place == Rows(0), layer
    assert ask(nn.BatchNorm2d(6), image).verdict == "statistics"
    assert ask(nn.BatchNorm2d(6), image).place == Rows(0)
    # modes are those that it is asked in
    assert ask(nn.Sequential(nn.Flatten(), nn.Linear(384, 2)), image).verdict == "proved"
    block = nn.TransformerEncoderLayer(6, 2, 8)
    assert ask(block, tokens, dims=1).place == Rows(1)
    assert ask(block, tokens, dims=0).verdict == "coupled"


def test_nothing_is_touched() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    held = {n: (t, t._version, t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    assert ask(model, torch.randn(8, 6)).verdict == "statistics"
    state_after = torch.get_rng_state()
    torch.manual_seed(0)
    for name, tensor in model.state_dict(keep_vars=True).items():
        same, version, value = held[name]
        assert tensor is same
        assert tensor._version == version
        assert torch.equal(tensor, value)
    assert state.shape == state_after.shape


def test_models_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        x = torch.empty(3, 5, 64)
    assert ask(model, x).verdict == "proved"
