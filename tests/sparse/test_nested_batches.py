"""Batches that are dicts, lists and tuples: split like others, and equal to the dense step and to forward hooks."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import SparseBackwardError
from graphaug.sparse.entries import in_inputs

X, Y = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    """A body on what ``read`` makes of the batch, and a head."""

    def __init__(self, read: Callable[[Any], Tensor], norm: bool = False) -> None:
        super().__init__()
        middle = nn.BatchNorm1d(16) if norm else nn.ReLU()
        self.body = nn.Sequential(nn.Linear(5, 16), middle, nn.Linear(16, 16))
        self.head = nn.Linear(16, 2)
        self.read = read

    def forward(self, batch: Any) -> Tensor:
        out: Tensor = self.head(self.body(self.read(batch)))
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 16), nn.Linear(16, 16)

    def forward(self, batch: Any) -> Tensor:
        out: Tensor = self.two(self.one(batch["x"] * batch["y"]).relu())
        return out


class Whole(nn.Module):
    """An encoder that stays closed, and gets the batch as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Encoder(), nn.Linear(16, 2)

    def forward(self, batch: Any) -> Tensor:
        out: Tensor = self.head(self.body(batch))
        return out


class Masked(Net):
    """A mask that both sides read, an entry of the batch that only the suffix reads, and a number."""

    def __init__(self) -> None:
        super().__init__(lambda batch: batch["x"])
        self.middle = nn.Linear(16, 16)

    def forward(self, batch: Any) -> Tensor:
        mask = (batch["ids"] > 0).double()[:, None]
        h = self.middle(self.body(batch["x"] * batch["scale"]) * mask)
        out: Tensor = self.head(h * mask) + batch["more"][0].double()[:, None]
        return out


IDS = torch.tensor([0, 1, 2, 0, 3, 4])
CASES: dict[str, Any] = {
    "dict": (lambda: Net(lambda b: b["x"] + b["x"].abs()), "body", {"x": X}),
    "nested": (lambda: Net(lambda b: b["q"]["x"][1]), "body", {"q": {"x": [Y, X]}, "k": torch.zeros(3)}),
    "list": (lambda: Net(lambda b: b[0] * b[1]), "body", [X, Y]),
    "tuple": (lambda: Net(lambda b: b[0] * b[1]), "body", (X, Y)),
    "named tuple": (lambda: Net(lambda b: b.x * b.y), "body", Pair(X, Y)),
    "values": (lambda: Net(lambda b: sum(b.values())), "body", {"x": X, "y": Y}),  # type: ignore[arg-type, return-value]
    "mask": (Masked, "middle", {"ids": IDS, "x": X, "scale": 2.0, "more": (IDS,)}),
    "whole dict": (Whole, "body", {"x": X, "y": Y, "n": 3}),
    "whole ordered dict": (Whole, "body", OrderedDict(x=X, y=Y)),
}


def made(name: str, **options: Any) -> tuple[ga.AugmentedModule, Any]:
    make, at, batch = CASES[name]
    torch.manual_seed(0)
    model = make().double().train()
    # all dropped, nothing random but the rows
    return ga.rewrite(model, at, rate=1.0, stop_grad=True, example_inputs=(batch,), **options), batch


def step(model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    out = model(batch)
    weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weights).sum(), list(model.parameters()), allow_unused=True)
    return (out.detach(), *(torch.zeros(()) if g is None else g for g in grads))


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_sparse_step_is_the_dense_one(name: str) -> None:
    aug, batch = made(name)
    assert aug.plan.backward == "sparse", aug.plan.reason
    assert aug.plan.reason.startswith("rows proved independent")
    with aug.dense():
        expected = step(aug, batch)
    assert_equal(step(aug, batch), expected)
    assert "training mode (sparse;" in str(ga.verify(aug, (batch,)))


@pytest.mark.parametrize("name", ["mask", "whole dict"])
def test_copies_and_pickles_are_sparse_and_the_same(name: str) -> None:
    aug, batch = made(name)
    if name == "mask":  # a lambda is not pickled
        del aug.original.read
        aug = ga.rewrite(ga.strip(aug), "middle", rate=1.0, stop_grad=True, example_inputs=(batch,))
    expected = step(aug, batch)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert twin.plan == aug.plan
        assert_equal(step(twin, batch), expected)


@pytest.mark.parametrize("name", ["nested", "mask", "whole ordered dict"])
def test_views_of_entries(name: str) -> None:
    aug, batch = made(name, views=2, pairing="together")
    assert aug.plan.backward == "sparse", aug.plan.reason
    with aug.dense():
        expected = step(aug, batch)
    assert len(expected[0]) == 12
    assert_equal(step(aug, batch), expected)
    assert "training mode (sparse;" in str(ga.verify(aug, (batch,)))


def test_two_streams_of_entries() -> None:
    model = Net(lambda batch: batch["x"], norm=True).double().train()
    aug = ga.rewrite(model, "body", stop_grad=True, backward="sparse", example_inputs=({"x": X},))
    assert "two streams" in aug.plan.reason
    twin = copy.deepcopy(model)
    aug.set_rate(0.0)
    torch.testing.assert_close(aug({"x": X}), twin({"x": X}), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mask", pytest.param("whole dict", marks=pytest.mark.long)])
def test_compiled_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    aug, batch = made(name)
    (node,) = aug.augmentations.values()
    node.draw_rows = lambda count, device: torch.arange(count, device=device) % 2 == 0  # type: ignore[method-assign]
    expected = step(aug, batch)
    assert_equal(step(torch.compile(aug, backend="aot_eager", fullgraph=True), batch), expected)
    torch._dynamo.reset()


def test_a_batch_whose_entries_have_other_numbers_of_rows_is_dense() -> None:
    """Rows are those of the value at the cut, whatever a first entry that the prefix does not read says."""
    model = Net(lambda batch: batch["x"]).double().train()
    example = {"other": Y, "x": X}
    aug = ga.rewrite(model, "body", rate=1.0, stop_grad=True, example_inputs=(example,))
    assert aug.plan.backward == "sparse", aug.plan.reason
    batch = {"other": Y[:3], "x": X}
    found = step(aug, batch)
    with aug.dense():
        assert_equal(found, step(aug, batch))


def test_skipped_rows_are_counted_in_entries() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, batch: Any) -> Tensor:
            x = batch["q"][0]
            out: Tensor = self.head(x + self.branch(x))
            return out

    batch = {"q": (X,)}
    aug = ga.skip_rows(Block().double().train(), "branch", rate=0.5, example_inputs=(batch,))
    assert "3 of 6 rows" in str(ga.verify(aug, (batch,)))


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (Whole(), defaultdict(None, x=X, y=Y), "takes an input whole that is a defaultdict"),
        (Net(lambda b: b["x"] * torch.tensor(b["w"])[:, None]), {"x": X, "w": [1.0] * 6}, "13|9|rows"),
    ],
)
def test_what_has_no_rows_to_take_is_refused_and_says_so(model: Any, batch: Any, message: str) -> None:
    model = model.double().train()
    with pytest.raises(SparseBackwardError, match=message):
        ga.rewrite(model, "body", stop_grad=True, backward="sparse", example_inputs=(batch,))
    assert ga.rewrite(model, "body", stop_grad=True, example_inputs=(batch,)).plan.backward == "dense"


def test_of_plain_tensors_the_inputs_are_the_placeholders_and_no_augmentation():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    graph = ga.rewrite(model, "0", stop_grad=True, example_inputs=torch.randn(6, 4))._parts.training_graph
    assert [n.op for n in in_inputs(graph)] == ["placeholder"]
