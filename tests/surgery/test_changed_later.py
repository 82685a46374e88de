"""Changes of the user's model after rewriting, and methods that its class has of its own. Oracle: the plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import graphaug as ga
from graphaug.errors import AssumptionViolated

pytestmark = pytest.mark.few(6)


class Net(nn.Module):
    """Closed children, opened ones, one in a list, and some that are None."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.stages = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.extra: nn.Module | None = nn.Linear(8, 8)
        self.nothing: nn.Module | None = None
        self.weight = nn.Parameter(torch.ones(8))
        self.register_parameter("bias", None)
        self.register_buffer("shift", None)
        self.times, self.doubled, self.scale = 2, False, 1.5

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.stem(x)) * self.weight
        for stage in self.stages:
            h = stage(h)
        for layer in (self.extra, self.nothing):
            h = h if layer is None else layer(h)
        for shift in (self.bias, self.shift):
            h = h if shift is None else h + shift
        return self.head(h) * self.times * (2 if self.doubled else 1) * self.scale


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


class AsksForClass(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 if isinstance(self.head, nn.Linear) else 1)


def new() -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(8, 8)


def ones() -> nn.Parameter:
    return nn.Parameter(torch.full((8,), 2.0))


FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "a new head": lambda m: setattr(m, "head", new()),
    "another class": lambda m: setattr(m, "head", nn.Sequential(new(), nn.Tanh())),
    "by registry": lambda m: m._modules.__setitem__("stem", new()),
    "add_module": lambda m: m.add_module("head", new()),
    "set_submodule": lambda m: m.set_submodule("body.0", new()),
    "root by path": lambda m: m.set_submodule("head", new()),
    "in an opened one": lambda m: m.body.__setitem__(0, new()),
    "in a list": lambda m: m.stages.__setitem__(1, new()),
    "deleted and set": lambda m: (delattr(m, "head"), setattr(m, "head", new())),
    "parameter": lambda m: setattr(m, "weight", ones()),
    "float": lambda m: setattr(m, "scale", 3.0),
}
REFUSED: dict[str, Callable[[Any], Any]] = {
    "opened exchanged": lambda m: setattr(m, "body", nn.Sequential(new(), nn.ReLU())),
    "append": lambda m: m.body.append(new()),
    "insert": lambda m: m.body.insert(0, new()),
    "extend": lambda m: m.stages.extend([new()]),
    "add_module": lambda m: m.body.add_module("more", new()),
    "pop": lambda m: m.body.pop(1),
    "del": lambda m: m.stages.__delitem__(1),
    "slice": lambda m: setattr(m, "stages", m.stages[:2]),
    "module None": lambda m: setattr(m, "extra", None),
    "None module": lambda m: setattr(m, "nothing", new()),
    "None parameter": lambda m: setattr(m, "bias", ones()),
    "parameter None": lambda m: setattr(m, "weight", None),
    "None buffer": lambda m: setattr(m, "shift", torch.ones(8)),
    "deleted": lambda m: delattr(m, "head"),
    "int": lambda m: setattr(m, "times", 5),
    "bool": lambda m: setattr(m, "doubled", True),
    "int gone": lambda m: delattr(m, "times"),
    "hook": lambda m: m.body.register_forward_hook(lambda q, a, o: o * 2),
    "pre-hook": lambda m: m.body.register_forward_pre_hook(lambda q, a: (a[0] * 2,)),
    "gradient hook": lambda m: m.body.register_full_backward_hook(lambda q, gi, go: None),
}


def pair(cls: type[nn.Module], at: str = "body.1") -> tuple[Any, Any, Any, Tensor]:
    """A model, its rewritten form that changes nothing, a plain copy, and an input."""
    torch.manual_seed(0)
    model, x = cls(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    return model, ga.rewrite(model, at=at, rate=0.0, stop_grad=False, example_inputs=x), plain, x


def both(plain: nn.Module, aug: nn.Module, x: Tensor) -> None:
    for mode in (True, False):
        torch.testing.assert_close(aug.train(mode)(x), plain.train(mode)(x))


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("on", ["model", "aug"])
def test_what_is_exchanged_acts_in_both(name: str, on: str) -> None:
    model, aug, plain, x = pair(Net)
    FOLLOWED[name](aug if on == "aug" else model)
    FOLLOWED[name](plain)
    both(plain, aug, x)
    assert list(aug.state_dict()) == list(plain.state_dict())
    assert dict(aug.named_children()).items() >= dict(model.named_children()).items()
    both(plain, copy.deepcopy(aug), x)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("on", ["model", "aug"])
def test_what_the_graph_has_not_recorded_is_refused(name: str, on: str) -> None:
    model, aug, _, x = pair(Net)
    REFUSED[name](aug if on == "aug" else model)
    with pytest.raises(AssumptionViolated):
        aug.train()(x)
    with pytest.raises(AssumptionViolated):
        copy.deepcopy(aug)(x)


def test_code_that_asks_for_classes() -> None:
    model, aug, plain, x = pair(AsksForClass)
    model.head = plain.head = new()
    both(plain, aug, x)
    model.head = nn.Sequential(new())
    with pytest.raises(AssumptionViolated, match="exchanged for Sequential"):
        aug.train()(x)


def test_a_root_that_is_a_container() -> None:
    model, aug, plain, x = pair(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "1")  # type: ignore[arg-type]
    assert len(aug) == 3
    assert list(aug) == list(model)
    assert aug[2] is model[2]
    aug[2] = plain[2] = new()
    both(plain, aug, x)
    model.append(new())
    with pytest.raises(AssumptionViolated, match="has the children"):
        aug.train()(x)


def test_a_removed_parametrization() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 8)
    parametrize.register_parametrization(model, "weight", Twice())
    aug = ga.rewrite(model, at="body.1", rate=0.0, example_inputs=x)
    parametrize.remove_parametrizations(model, "weight")
    with pytest.raises(AssumptionViolated):
        aug.train()(x)
    torch.testing.assert_close(aug.eval()(x), model(x))


@pytest.mark.parametrize("first", ["pre", "post"])
def test_hooks_of_the_other_kind(first: str) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 8)
    register = [model.body.register_forward_pre_hook, model.body.register_forward_hook]
    register[first == "post"](lambda *_: None)
    aug = ga.rewrite(model, at="body.1", rate=0.0, example_inputs=x, allow_bypass=True)
    register[first == "post"](lambda *_: None)
    both(model, aug, x)
    register[first == "pre"](lambda *_: None)
    with pytest.raises(AssumptionViolated, match="hook was registered"):
        aug.train()(x)


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
    ],
)
def test_hooks_of_the_whole_process(register: Any) -> None:
    _, aug, plain, x = pair(Net)
    handle = register(lambda *_: None)
    try:
        with pytest.raises(AssumptionViolated, match="all modules of the process"):
            aug.train()(x)
    finally:
        handle.remove()
    both(plain, aug, x)


def test_a_counter_of_flops_counts_a_step() -> None:
    """Its hooks for all modules are torch's own, and change nothing."""
    _, aug, plain, x = pair(Net)
    found = []
    for model in (aug.train(), plain):
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("later", [True, False])
def test_a_hook_on_the_gradients_of_the_model(later: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 8)
    calls: list[bool] = []

    def hook(_: nn.Module, inner: Any, outer: Any) -> Any:
        calls.append(inner[0] is not None)
        return (inner[0] * 2,)

    if not later:
        model.register_full_backward_hook(hook)
    aug = ga.rewrite(model, at="body.1", rate=0.0, stop_grad=False, example_inputs=x)
    if later:
        model.register_full_backward_hook(hook)
    calls.clear()
    gradients = []
    for m in (model, aug):
        given = x.clone().requires_grad_()
        m.train()(given).sum().backward()
        gradients.append(given.grad)
    assert calls == [True, True]
    torch.testing.assert_close(*gradients)


@pytest.mark.long
def test_compiled_whole_with_another_head() -> None:
    model, aug, plain, x = pair(Net)
    graphs: list[Any] = []
    compiled = torch.compile(aug.train(), fullgraph=True, backend=lambda g, _: graphs.append(g) or g.forward)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), plain(x))
    assert len(graphs) == 1
    model.head, plain.head = new(), new()
    for _ in range(3):
        torch.testing.assert_close(compiled(x), plain(x))
    assert len(graphs) == 2
