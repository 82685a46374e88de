"""Verify compares all that a model returns and trains: objects, complex and sparse tensors. Oracle: planted faults."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import VerificationError
from graphaug.proof.equivalence import numbers_in, plain_containers, same
from graphaug.proof.on_a_batch.outputs import distance

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Out:
    hidden: Any


@dataclasses.dataclass
class Slotted:
    __slots__ = ("hidden",)
    hidden: Any


class Named(NamedTuple):
    hidden: Any


class Plain:
    def __init__(self, hidden: Any) -> None:
        self.deep = {"list": [hidden]}


class Entries:
    """Has ``items`` and is no mapping."""

    def __init__(self, hidden: Any) -> None:
        self._hidden = hidden

    def items(self) -> Any:
        return [("hidden", self._hidden)]


KINDS: dict[str, Callable[[Any], Any]] = {
    "dataclass": Out,
    "slots": Slotted,
    "named tuple": Named,
    "dict": lambda h: {"hidden": h},
    "nested": lambda h: [(Out({"x": Slotted(h)}),)],
    "ordered": lambda h: collections.OrderedDict(hidden=h),
}


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Any], Any], beside: bool) -> None:
        super().__init__()
        self.a, self.b, self.wrap, self.beside = nn.Linear(6, 6), nn.Linear(6, 3), wrap, beside

    def forward(self, x: Tensor) -> Any:
        o = self.b(self.a(x).relu())
        return (o, self.wrap(o * 2)) if self.beside else self.wrap(o * 2)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)
@pytest.mark.few(14)
def test_what_lies_in_an_output_is_compared(wrap: Callable[[Any], Any], beside: bool) -> None:
    aug = ga.rewrite(Returns(wrap, beside), "a", stop_grad=True, example_inputs=X)
    assert "gradients equal" in str(ga.verify(aug, X))
    for node in aug.graph.nodes:  # times 2 becomes times 200
        if node.op == "call_function" and 2 in node.args:
            node.args = (node.args[0], 200)
    aug.graph.lint()
    aug.recompile()
    with pytest.raises(VerificationError, match="eval mode"):
        ga.verify(aug, X)


def test_equal_is_said_of_equal_objects_alone() -> None:
    one, two = torch.ones(2), torch.tensor([1.0, 2.0])
    for wrap in (*KINDS.values(), Entries, Plain):
        assert same(wrap(one), wrap(one.clone()))
        assert not same(wrap(one), wrap(two))
        assert torch.equal(numbers_in(wrap(two))[0], two)
    assert not same(Out(one), Named(one))
    assert same(Out(float("nan")), Out(float("nan")))
    assert not same(Out(1.0), Out(2.0))
    assert not same(np.ones(2), np.zeros(2))
    assert same(np.array([np.nan]), np.array([np.nan]))
    loop = Out(one)
    loop.hidden = [loop, one]
    assert same(loop, loop)
    assert len(torch.utils._pytree.tree_leaves(plain_containers(loop))) == 2  # itself once, and what it holds
    assert not same(one.to_sparse(), two.to_sparse())
    assert same(one.to_sparse(), one.to_sparse())
    assert not same(one.to_sparse(), one)
    complex_one = torch.tensor([1 + 2j, complex("nan")])
    assert same(complex_one, complex_one.clone())
    assert not same(complex_one, torch.tensor([1 + 3j, complex("nan")]))
    assert same(complex_one.requires_grad_(), complex_one)
    for a, b in (
        ({1}, {2}),
        (frozenset({1}), frozenset({1, 2})),
        (collections.deque([one]), collections.deque([two])),
        (np.float32(1), np.float32(2)),
        (torch.float32, torch.float64),
        (range(2), range(3)),
    ):
        assert same(a, a)
        assert not same(Out(a), Out(b))


@dataclasses.dataclass
class WithItems:
    items: Any


def test_a_field_called_items_is_one_like_others() -> None:
    assert torch.equal(numbers_in(WithItems(torch.ones(2)))[0], torch.ones(2))
    assert not same(WithItems(torch.ones(2)), WithItems(torch.zeros(2)))


def test_what_is_not_finite_has_to_be_so_in_both() -> None:
    nan, inf = float("nan"), float("inf")
    assert distance(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert distance(torch.tensor([nan, 1.0]), torch.tensor([nan, 2.0])) == 0.5
    assert distance(torch.tensor([-inf, 1.0]), torch.tensor([-inf, 2.0])) == 0.5


def test_distances_are_of_complex_and_sparse_tensors_too() -> None:
    assert distance(torch.tensor([1 + 0j]), torch.tensor([7 + 0j])) == pytest.approx(6 / 7)
    assert distance(torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()) == 0.5
    assert distance(None, torch.zeros(2).to_sparse()) == 0.0
    assert distance(None, torch.ones(2).to_sparse()) == float("inf")


class SevenTimes(torch.autograd.Function):
    """The identity with a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 7


def seven_times(t: Tensor) -> Any:
    return SevenTimes.apply(t)


class Spectral(nn.Module):
    """A Fourier layer with complex weights; with ``whole`` the output is complex, too."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, dtype=torch.cfloat))
        self.b, self.c, self.whole = nn.Linear(6, 6), nn.Linear(6, 3), whole

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(self.b(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=6)))
        return torch.fft.fft(h) if self.whole else h


@pytest.mark.parametrize("whole", [True, False])
def test_the_gradient_of_a_complex_parameter_is_compared(whole: bool) -> None:
    torch.manual_seed(0)
    model = Spectral(whole)
    aug = ga.rewrite(model, "b", stop_grad=True, backward="dense", example_inputs=X)
    assert "output and 5 gradients equal" in str(ga.verify(aug, X))
    w = next(n for n in aug.graph.nodes if n.op == "get_attr" and n.target == "w")
    user = next(iter(w.users))
    with aug.graph.inserting_before(user):
        user.replace_input_with(w, aug.graph.call_function(seven_times, (w,)))
    aug.graph.lint()
    aug.recompile()
    with pytest.raises(VerificationError, match="gradient of 'w' differs"):
        ga.verify(aug, X)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.b, self.c = nn.Embedding(10, 6, sparse=True), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.c(self.b(self.e(ids)).mean(1))


@pytest.mark.parametrize("backward", ["dense", "auto"])
def test_sparse_gradients_are_compared(backward: str) -> None:
    ids = torch.randint(0, 10, (4, 5), generator=torch.Generator().manual_seed(0))
    aug = ga.rewrite(Words(), "b", stop_grad=True, backward=backward, example_inputs=ids)
    assert "output and 5 gradients equal" in str(ga.verify(aug, ids))
    assert "bit-equal" in str(ga.verify(ga.tap(Words(), "b", example_inputs=ids), ids))


class OfGraph(nn.Module):
    """A graph's adjacency matrix as a sparse buffer, before the site or behind it."""

    def __init__(self, layout: torch.layout, behind: bool, closed: bool) -> None:
        super().__init__()
        self.a, self.b, self.behind = nn.Linear(6, 6), nn.Linear(6, 3), behind
        self.neighbours = Neighbours(layout) if closed else None
        if not closed:
            self.register_buffer("adjacency", adjacency(layout))

    def forward(self, x: Tensor) -> Tensor:
        def spread(h: Tensor) -> Tensor:
            return self.neighbours(h) if self.neighbours is not None else torch.mm(self.adjacency, h)

        return self.b(spread(self.a(x))) if self.behind else self.b(self.a(spread(x)).relu())


class Neighbours(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency(layout))

    def forward(self, h: Tensor) -> Tensor:
        return torch.mm(self.adjacency, h)


def adjacency(layout: torch.layout) -> Tensor:
    whole = torch.eye(4) + torch.diag(torch.ones(3), 1)
    return whole.to_sparse(layout=layout)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.few(4)
def test_models_with_sparse_buffers_are_rewritten(layout: torch.layout, behind: bool, closed: bool) -> None:
    """Oracle: the model itself, and verify's hooks."""
    model = OfGraph(layout, behind, closed)
    assert "a" in [site.path for site in ga.sites(model, example_inputs=X)]
    aug = ga.rewrite(model, "a", rate=0.0, example_inputs=X)
    for mode in (True, False):
        torch.testing.assert_close(aug.train(mode)(X), model.train(mode)(X))
    assert "gradients equal" in str(ga.verify(aug, X))
