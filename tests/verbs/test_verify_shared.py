"""Parameters that are used on both sides of a cut are no leak, and a leak is found beside them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import VerificationError


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.mid(self.emb(tokens)))
        return F.linear(self.last(h), self.emb.weight)


class TiedModules(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.last(torch.tanh(self.mid(self.emb(tokens)))))


class Siamese(nn.Module):
    """One encoder for both inputs; cut behind its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.enc(x[:, 0]), self.enc(x[:, 1])
        return torch.cat([self.head(first), self.head(second)], 1)


TOKENS = torch.randint(20, (6, 5), generator=torch.Generator().manual_seed(0))
SHARED = {
    "tied by a function": (Tied, "mid", TOKENS),
    "tied by a module": (TiedModules, "mid", TOKENS),
    "siamese": (Siamese, "enc@1", torch.randn(6, 2, 8)),
}


@pytest.mark.parametrize("backward", ["dense", "auto"])
@pytest.mark.parametrize("name", SHARED)
def test_what_is_used_on_both_sides_raises_no_alarm(name: str, backward: str) -> None:
    cls, at, x = SHARED[name]
    aug = ga.rewrite(
        cls(), at, stop_grad=True, backward=backward, example_inputs=x, allow_bypass=name == "siamese"
    )
    claims = str(ga.verify(aug, x))
    assert "differ" not in claims
    if name.startswith("tied"):
        assert "none of 2 parameters below" in claims  # of mid; the embedding lies on both sides


class Leaks(nn.Module):
    """The middle is cut, and passed by what a closed module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.mid(self.emb(tokens))
        return F.linear(self.last(torch.tanh(h)), self.emb.weight) + 0


def test_a_leak_is_found_beside_tied_weights() -> None:
    model = Leaks()
    aug = ga.rewrite(model, "mid", stop_grad=True, backward="dense", example_inputs=TOKENS)
    node = next(n for n in aug.graph.nodes if n.target is torch.tanh)
    (cut,) = (n for n in aug.graph.nodes if n.target == aug.plan.sites[0].module)
    with aug.graph.inserting_after(node):
        around = aug.graph.call_function(torch.add, (node, cut.args[0]))
    node.replace_all_uses_with(around, delete_user_cb=lambda user: user is not around)
    aug.recompile()
    with pytest.raises(VerificationError):
        ga.verify(aug, TOKENS)


class Teacher(nn.Module):
    """Its forward moves a copy of its weights, in both modes, and returns what the copy says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mean", self.last.weight.detach() * 0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        self.mean.lerp_(self.last.weight.detach(), 0.5)
        return self.last(h) + F.linear(h.detach(), self.mean)


@pytest.mark.parametrize("backward", ["dense", "auto"])
def test_a_model_that_moves_itself_on_in_every_call_raises_no_alarm(backward: str) -> None:
    x = torch.randn(6, 8)
    model = Teacher()
    aug = ga.rewrite(model, "first", stop_grad=True, backward=backward, example_inputs=x)
    before = model.mean.clone()
    ga.verify(aug, x)
    assert torch.equal(model.mean, before)
