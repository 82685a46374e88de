"""Memory that is shared and written in place around a cut, by opened code and by closed modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BypassedSite, SiteNotFound

FEATURES = 8


class Shift(nn.Module):
    """Adds its own numbers; what is saved for its backward is nothing that could be overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class ShiftInPlace(Shift):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.w)


class AddInto(nn.Module):
    """Writes into what it is given, and returns nothing."""

    def forward(self, into: Tensor, value: Tensor) -> None:
        into.add_(value)


CLOSED = {"shift": Shift, "view": View, "same": Same, "shift_in_place": ShiftInPlace}
Step = tuple[str, int, int]


class Program(nn.Module):
    """Runs steps that make tensors, look at them from elsewhere and write into them; its result is a sum of some."""

    def __init__(self, steps: list[Step], returned: list[int]) -> None:
        super().__init__()
        self.steps, self.returned = tuple(steps), tuple(returned)
        self.first = nn.Linear(FEATURES, FEATURES)
        self.into = AddInto()
        for number, (kind, *_) in enumerate(steps):
            if kind in CLOSED:
                self.add_module(f"step{number}", CLOSED[kind]())

    def forward(self, x: Tensor) -> Tensor:
        made = [self.first(x)]
        for number, (kind, i, j) in enumerate(self.steps):
            one, other = made[i % len(made)], made[j % len(made)]
            if kind in CLOSED:
                made.append(getattr(self, f"step{number}")(one))
            elif kind == "half":
                one[:, : FEATURES // 2] += 1.0
            elif kind == "sum":
                made.append(one + other)
            elif kind == "add_":
                one.add_(other)
            elif kind == "fresh":
                made.append(x * 3)
            else:
                self.into(one, other)
        return torch.stack([made[i % len(made)] for i in self.returned]).sum(0)


KINDS = [*CLOSED, "half", "sum", "add_", "fresh", "into"]
steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=7
)


def outcome(model: nn.Module, site: str, x: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """What a training step gives: (its result, its rows that were drawn, what of the input passes into each row)."""
    try:
        aug = ga.rewrite(model, at=site, rate=0.5, subset=0.5, stop_grad=True, backward="dense", **options)
    except BypassedSite:
        return None
    given = x.clone().requires_grad_()
    out = aug.train()(given)
    drawn = aug.drawn[site].rows
    assert drawn is not None
    (gradient,) = torch.autograd.grad(out.sum(), given)
    return out.detach(), drawn, gradient


@given(
    steps=steps,
    returned=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    at=st.integers(0, 7),
    data=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_other_rows_are_the_models_and_stopped_rows_pass_nothing(
    steps: list[Step], returned: list[int], at: int, data: bool
) -> None:
    sites = ["first", *(f"step{n}" for n, (kind, *_) in enumerate(steps) if kind in CLOSED)]
    site = sites[at % len(sites)]
    torch.manual_seed(0)
    model, x = Program(steps, returned).train(), torch.randn(6, FEATURES)
    expected = model(x.clone()).detach()
    try:
        found = outcome(model, site, x, **({"example_inputs": (x.clone(),)} if data else {}))
    except SiteNotFound:  # nothing returns it
        assume(False)
    if found is None:
        return
    out, drawn, gradient = found
    assert torch.equal(out[~drawn], expected[~drawn])
    assert not gradient[drawn].any()
    assert gradient[~drawn].any(dim=1).all()


class Around(nn.Module):
    """A closed module carries the input around the site by writing it into what lies behind."""

    def __init__(self, write: nn.Module) -> None:
        super().__init__()
        self.stem, self.site, self.write, self.head = Shift(), Shift(), write, nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.site(self.stem(x))
        self.write(h, x)
        return self.head(h)


class AddIntoLooking(nn.Module):
    """The same in code that runs on no fakes, so that it is tried on small tensors."""

    def forward(self, into: Tensor, value: Tensor) -> Tensor:
        if into.sum().item() > -1e9:
            into[:, 0] += value[:, 0]
        return into.mean(dim=1)


@pytest.mark.parametrize("write", [AddInto(), AddIntoLooking()], ids=["fakes", "small tensors"])
@pytest.mark.parametrize("examples", [None, torch.randn(6, FEATURES)], ids=["found", "given"])
def test_what_a_closed_module_writes_is_a_way_around(write: nn.Module, examples: Tensor | None) -> None:
    with pytest.raises(BypassedSite, match="'write' also receives 'input'"):
        ga.rewrite(Around(write), at="site", example_inputs=examples)
    assert (
        ga.rewrite(Around(write), at="head", example_inputs=examples)
        .plan.sites[0]
        .note.startswith("separates")
    )


class SharedPrefix(nn.Module):
    """Its site reads what a closed module wrote, without taking anything that it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.write = (
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, FEATURES),
            AddInto(),
        )
        self.site, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x) * 1
        self.write(h, self.side(x))
        return self.head(self.site(h))


def test_what_a_closed_module_wrote_lies_before_the_cut() -> None:
    frozen = ga.rewrite(SharedPrefix(), at="site", freeze="before")
    trained = [name for name, p in frozen.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]


def test_a_skipped_backward_runs_what_a_closed_module_writes() -> None:
    torch.manual_seed(0)
    model, x = SharedPrefix(), torch.randn(8, FEATURES)
    aug = ga.rewrite(model, at="site", rate=1.0, stop_grad=True, backward="sparse", example_inputs=x).train()
    gradients = []
    for dense in (False, True):
        torch.manual_seed(1)
        aug.zero_grad()
        if dense:
            with aug.dense():
                aug(x).square().sum().backward()
        else:
            aug(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in aug.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 8
    for sparse, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, whole)


class Looking(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.look, self.head = nn.Linear(FEATURES, FEATURES), View(), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        seen = self.look(h)
        if self.how == "whole":
            h.mul_(2)
        elif self.how == "seen":
            seen.mul_(2)
            return self.head(h) + self.head(seen)
        elif self.how == "hook":
            h.register_hook(lambda g: g * 1)
        return self.head(seen)


@pytest.mark.parametrize(("how", "reader"), [("whole", "look"), ("seen", "stem")])
def test_a_view_that_is_written_behind_the_cut_is_refused_by_name(how: str, reader: str) -> None:
    said = f"'look' lies in the memory of 'stem', and behind it 'mul' writes .* '{reader}' is read from"
    with pytest.raises(BypassedSite, match=said):
        ga.rewrite(Looking(how), at="look", allow_bypass=True)
    ga.rewrite(Looking(how), at="stem", allow_bypass=True)


@pytest.mark.parametrize("how", ["nothing", "hook"])
def test_a_view_that_nothing_writes_into_is_a_site(how: str) -> None:
    assert ga.rewrite(Looking(how), at="look").plan.sites[0].note.startswith("separates")
