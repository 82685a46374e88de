"""Modules whose code a graph holds though it was not opened: entered by another method, or registered nowhere."""

import copy
import io

import pytest
import torch
from compiling import check_noticed_when_compiled
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Body(nn.Module):
    """A child that is entered by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factors = nn.Linear(4, 4), [1.0]

    @staticmethod
    def scaled(h: Tensor) -> Tensor:
        return h

    @classmethod
    def shifted(cls, h: Tensor) -> Tensor:
        return h

    @property
    def gain(self) -> float:
        return 2.0

    def features(self, x: Tensor) -> Tensor:
        return self.shifted(self.scaled(torch.tanh(self.inner(x)))) * self.factors[0] * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) + len(self.factors)


class Through(nn.Module):
    """Enters its body by ``features``, and a teacher in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = Body(), nn.Linear(4, 4)
        self.hidden = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Body()).eval()]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.hidden[0](x)
        return self.last(self.body.features(x) + h)


class Other(Body):
    def features(self, x: Tensor) -> Tensor:
        return self.inner(x)


def assigned(m: nn.Module) -> None:
    m.load_state_dict({name: value.clone() for name, value in m.state_dict().items()}, assign=True)


CHANGES = {
    "body.features": lambda m: setattr(m.body, "features", torch.tanh),
    "body.features ": lambda m: setattr(m.body, "__class__", Other),
    "body": lambda m: setattr(m, "body", Other()),
    "the list body.factors": lambda m: m.body.factors.__setitem__(0, 3.0),
    "hidden[0].1.training": lambda m: m.hidden[0].train(),
    "hidden[0].0.weight": lambda m: setattr(m.hidden[0][0], "weight", nn.Parameter(torch.eye(4))),
    "hidden[0].0.bias": lambda m: assigned(m.hidden[0]),
    "hidden[0]._modules": lambda m: m.hidden[0].__setitem__(0, nn.Linear(4, 4)),
    "the hooks of hidden[0].1": lambda m: m.hidden[0][1].register_forward_hook(lambda *_: None),
    "hidden[0].2.factors": lambda m: m.hidden[0][2].factors.append(1.0),
    "hidden[0].2.forward": lambda m: setattr(m.hidden[0][2], "forward", torch.tanh),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("kind", ["itself", "a copy", "a loaded one"])
def test_a_change_is_noticed_and_named(what, kind):
    aug = ga.rewrite(Through(), "last", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    if kind == "a copy":
        aug = copy.deepcopy(aug)
    if kind == "a loaded one":
        file = io.BytesIO()
        torch.save(aug, file)
        file.seek(0)
        aug = torch.load(file, weights_only=False)
    x = torch.randn(3, 4)
    aug(x).sum().backward()
    CHANGES[what](aug.original)
    with pytest.raises(AssumptionViolated, match="Call rewrite again") as error:
        aug(x)
    assert what.strip() in str(error.value)


CODE = {
    "scaled": staticmethod(torch.tanh),
    "shifted": classmethod(lambda cls, h: h * 3),
    "gain": property(lambda self: 3.0),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("what", CODE)
@pytest.mark.parametrize("site", ["last", "body.inner"])
def test_what_is_no_plain_method_may_be_replaced_on_the_class(what, site, monkeypatch):
    model = Through() if site == "last" else nn.ModuleDict({"body": Body()})
    if site != "last":
        model.forward = lambda x: model.body(x)  # opens it
    aug = ga.rewrite(model, site, rate=0.5, example_inputs=torch.randn(4, 4)).train()
    aug(torch.randn(3, 4))
    monkeypatch.setattr(Body, what, CODE[what])
    with pytest.raises(AssumptionViolated, match=rf"\.{what} changed"):
        aug(torch.randn(3, 4))


class Options:
    """A plain object with code of its own."""

    @property
    def scale(self) -> float:
        return 2.0

    def applied(self, h: Tensor) -> Tensor:
        return h * self.scale


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.options = nn.Linear(4, 4), Options()

    def forward(self, x: Tensor) -> Tensor:
        return self.options.applied(self.first(x))


def test_code_of_an_object(monkeypatch):
    for owner, what, value in (
        ("object", "applied", torch.tanh),
        ("class", "applied", lambda self, h: h),
        ("class", "scale", property(lambda self: 3.0)),
    ):
        aug = ga.rewrite(Plain(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
        aug(torch.randn(3, 4))
        with monkeypatch.context() as patch:
            patch.setattr(Options if owner == "class" else aug.original.options, what, value)
            with pytest.raises(AssumptionViolated, match=rf"options\.{what}"):
                aug(torch.randn(3, 4))


COUNTED = {"calls": 0}


class Parent(nn.Module):
    """Has a child that knows it, past registration, and reads one switch of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.log, self.on = nn.BatchNorm1d(4), [], True
        self.child = Child(self)

    def forward(self, x: Tensor) -> Tensor:
        COUNTED["calls"] += 1
        return self.norm(self.child(x))


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.first, self.parent = nn.Linear(4, 4), [parent]

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * (2 if self.parent[0].on else 1)


def test_of_a_module_that_is_not_run_what_was_read_counts():
    parent = Parent()
    aug = ga.rewrite(parent.child, "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    parent.eval()
    aug.train()
    parent.register_forward_hook(lambda *_: None)
    parent.log.append(1)
    COUNTED["calls"] += 1
    parent.norm = nn.Identity()
    aug(torch.randn(3, 4))
    parent.on = False
    with pytest.raises(AssumptionViolated, match=r"parent\[0\]\.on == True"):
        aug(torch.randn(3, 4))


def test_a_teacher_that_follows_its_student():
    model = Through()
    aug = ga.rewrite(model, "last", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    for _ in range(3):
        aug(torch.randn(3, 4)).sum().backward()
        with torch.no_grad():
            for tensor in model.hidden[0].parameters():
                tensor.mul_(0.9)
        model.hidden[0].load_state_dict(model.hidden[0].state_dict())
        model.hidden[0].requires_grad_(False)
        model.hidden[0].zero_grad()


def test_a_child_whose_forward_is_not_run_may_have_another():
    aug = ga.rewrite(Through(), "last", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    aug.original.body.forward = torch.tanh
    aug(torch.randn(3, 4))


@pytest.mark.long
@pytest.mark.parametrize(
    "what", ["body.features", "the list body.factors", "hidden[0].1.training", "hidden[0]._modules"]
)
def test_compiled_code_notices_as_well(what):
    aug = ga.rewrite(Through(), "last", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    check_noticed_when_compiled(aug, torch.randn(3, 4), CHANGES[what])
