"""What opened code reads off classes and modules is relied on. Oracle: the model itself, before and after a change."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiling import check_noticed_when_compiled
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.relied.code_names import attributes_in, calls_in
from graphaug.errors import AssumptionViolated

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
settings = types.ModuleType("settings_of_a_test")
settings.options = types.SimpleNamespace(t=1.0)
sys.modules["settings_of_a_test"] = settings
package = types.ModuleType("package_of_a_test")
package.settings = settings


class Defaults:
    tau, unread = 1.0, 1.0


class Config(Defaults):
    scale = 1.0

    class Loss:
        temperature = 1.0

        @staticmethod
        def of(h: Tensor) -> Tensor:
            return h * 1.0

    @classmethod
    def scaled(cls, h: Tensor) -> Tensor:
        return h * cls.scale

    @staticmethod
    def act(h: Tensor) -> Tensor:
        return torch.relu(h)


class OfClasses(type):
    @property
    def doubled(cls) -> float:
        return 2 * cls.base


class WithBase(metaclass=OfClasses):
    base = 1.0


class Criterion:
    """Is made in the forward."""

    weight, unread = 1.0, 1.0

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    @classmethod
    def make(cls) -> "Criterion":
        return cls(0.5)

    @property
    def doubled(self) -> float:
        return 2 * self.weight

    def loss(self, h: Tensor) -> Tensor:
        return h * self.weight + self.bias

    def __call__(self, h: Tensor) -> Tensor:
        return self.loss(h)

    def __mul__(self, h: Tensor) -> Tensor:
        return h * 1.0


class Inheriting(Criterion):
    pass


class Marker:
    """Is only asked about."""

    tau, weight = 1.0, 1.0

    def loss(self, h: Tensor) -> Tensor:
        return h


LOSSES = {"first": Criterion}


def imported(h: Tensor) -> Tensor:
    from settings_of_a_test import options as o

    return h * o.t


def functional_of_a_forward(h: Tensor) -> Tensor:
    import torch.nn.functional as functional

    return functional.gelu(h)


class Base(nn.Module):
    """Runs one function of what a linear layer gives."""

    tau = 1.0

    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.read = nn.Linear(8, 8), nn.Linear(8, 2), read

    def post(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.read(self, self.a(x)))


class Net(Base):
    def post(self, h: Tensor) -> Tensor:
        return super().post(h) * 1.0


def tripled(*args: Any, **_: Any) -> Tensor:
    return 3 * args[-1]


def changed_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q + k + v


READS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any, str, Any, str]] = {
    "nested class": (lambda m, h: h / Config.Loss.temperature, Config.Loss, "temperature", 0.1, "Loss.temperature"),
    "nested static": (lambda m, h: Config.Loss.of(h), Config.Loss, "of", staticmethod(tripled), "Loss.of"),
    "nested class, exchanged": (
        lambda m, h: h / Config.Loss.temperature,
        Config,
        "Loss",
        types.SimpleNamespace(temperature=3.0),
        "Config.Loss",
    ),
    "class method's option": (lambda m, h: Config.scaled(h), Config, "scale", 3.0, "Config.scale"),
    "class method": (lambda m, h: Config.scaled(h), Config, "scaled", classmethod(tripled), "Config.scaled"),
    "static method": (lambda m, h: Config.act(h), Config, "act", staticmethod(tripled), "Config.act"),
    "inherited": (lambda m, h: h * Config.tau, Defaults, "tau", 3.0, "Config.tau"),
    "set on the one that inherits": (lambda m, h: h * Config.tau, Config, "tau", 3.0, "Config.tau"),
    "by a string": (lambda m, h: h * getattr(Defaults, "tau"), Defaults, "tau", 3.0, "Defaults.tau"),  # noqa: B009
    "missing": (lambda m, h: h * getattr(Defaults, "later", 1.0), Defaults, "later", 3.0, "Defaults.later"),
    "of a metaclass": (lambda m, h: h * WithBase.doubled, WithBase, "base", 3.0, "WithBase.base"),
    "made": (lambda m, h: Criterion()(h), Criterion, "weight", 3.0, "Criterion.weight"),
    "made, its class inherits": (lambda m, h: Inheriting()(h), Criterion, "weight", 3.0, "Inheriting.weight"),
    "made, set on its class": (lambda m, h: Inheriting()(h), Inheriting, "weight", 3.0, "Inheriting.weight"),
    "made, its call": (lambda m, h: Criterion()(h), Criterion, "__call__", tripled, "Criterion.__call__"),
    "made, its method": (lambda m, h: Criterion().loss(h), Criterion, "loss", tripled, "Criterion.loss"),
    "made, its operator": (lambda m, h: Criterion() * h, Criterion, "__mul__", tripled, "Criterion.__mul__"),
    "made, its property": (lambda m, h: h * Criterion().doubled, Criterion, "weight", 3.0, "Criterion.weight"),
    "made, its constructor": (
        lambda m, h: Criterion()(h),
        Criterion,
        "__init__",
        lambda self: setattr(self, "bias", 1.0),
        "Criterion.__init__",
    ),
    "made by a class method": (lambda m, h: Criterion.make()(h), Criterion, "weight", 3.0, "Criterion.weight"),
    "made, of a table": (lambda m, h: LOSSES["first"]()(h), Criterion, "weight", 3.0, "Criterion.weight"),
    "super()": (lambda m, h: m.post(h), Base, "post", tripled, "Base.post"),
    "by its base": (lambda m, h: Base.post(m, h), Base, "post", tripled, "Base.post"),
    "type(self)": (lambda m, h: h * type(m).tau, Net, "tau", 3.0, "Net.tau"),
    "__class__": (lambda m, h: h * m.__class__.tau, Net, "tau", 3.0, "Net.tau"),
    "imported by another name": (lambda m, h: imported(h), settings.options, "t", 3.0, "settings_of_a_test.options.t"),
    "a module in a module": (
        lambda m, h: h * package.settings.options.t,
        settings,
        "options",
        types.SimpleNamespace(t=3.0),
        "package.settings.options",
    ),
    "torch's, of C": (lambda m, h: F.gelu(h), F, "gelu", torch.tanh, "F.gelu"),
    "torch's, of Python": (lambda m, h: F.relu(h), F, "relu", torch.tanh, "F.relu"),
    "torch's, by a chain": (
        lambda m, h: torch.nn.functional.scaled_dot_product_attention(h, h, h),
        F,
        "scaled_dot_product_attention",
        changed_query,
        "torch.nn.functional.scaled_dot_product_attention",
    ),
    "torch's, of torch": (lambda m, h: torch.einsum("bi->bi", h), torch, "einsum", tripled, "torch.einsum"),
    "torch's, imported": (lambda m, h: functional_of_a_forward(h), F, "gelu", torch.tanh, "functional.gelu"),
}  # fmt: skip


def rewritten(read: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, Net]:
    model = Net(read)
    aug = ga.rewrite(model, at="a", rate=0.5, subset=0.0, example_inputs=X).train()
    assert torch.equal(aug(X), model(X))
    return aug, model


@pytest.mark.parametrize(("read", "holder", "name", "value", "said"), READS.values(), ids=READS)
def test_a_change_is_noticed(read, holder, name, value, said, monkeypatch):
    aug, model = rewritten(read)
    before = model(X)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, value, raising=name != "later")
        assert not torch.equal(before, model(X))
        with pytest.raises(AssumptionViolated, match=said.replace(".", r"\.")):
            aug(X)
    assert torch.equal(aug(X), model(X))


UNREAD: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any, str, Any]] = {
    "an option that nothing reads": (lambda m, h: h * Config.tau, Defaults, "unread", 3.0),
    "one of what is made": (lambda m, h: Criterion()(h), Criterion, "unread", 3.0),
    "a method that nothing calls": (lambda m, h: Criterion() * h, Criterion, "make", None),
    "an option of what is only asked about": (
        lambda m, h: h if isinstance(h, Marker) else Criterion()(h), Marker, "weight", 3.0,
    ),
    "a method of it": (lambda m, h: h if isinstance(m, Marker) else m.post(h), Marker, "__call__", tripled),
    "a function that no code names": (lambda m, h: F.gelu(h), F, "softplus", torch.tanh),
}  # fmt: skip


@pytest.mark.parametrize(("read", "holder", "name", "value"), UNREAD.values(), ids=UNREAD)
def test_what_nothing_reads_may_change(read, holder, name, value, monkeypatch):
    aug, model = rewritten(read)
    monkeypatch.setattr(holder, name, value, raising=False)
    assert torch.equal(aug(X), model(X))


class Counted:
    """Its constructor counts the objects, and nothing reads how many."""

    made, kept = 0, {}

    def __init__(self) -> None:
        Counted.made += 1
        type(self).made += 1

    def __call__(self, h: Tensor) -> Tensor:
        return h * 1.0


class Closed(nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.read = nn.Linear(8, 8), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.linear(x))


def test_what_the_constructor_of_closed_code_counts_may_change():
    torch.manual_seed(0)
    model = nn.Sequential(Closed(lambda h: Counted()(h)), nn.Linear(8, 8), nn.Linear(8, 2))
    aug = ga.rewrite(model, at="1", rate=0.0, stop_grad=True, example_inputs=X).train()
    for _ in range(3):
        torch.testing.assert_close(aug(X), model(X))


def test_the_function_behind_a_patch_of_a_recording_is_relied_on():
    aug, model = rewritten(lambda m, h: F.gelu(h))
    with Patches(lambda: False) as patches:
        patches.method(F, "gelu", tripled)
        assert torch.equal(aug(X), model(X))
        during, _ = rewritten(lambda m, h: F.gelu(h))
    assert torch.equal(during(X), model(X))


COMPILED = ("nested class", "class method", "static method", "made", "made, its call", "super()")


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", COMPILED)
def test_a_change_is_noticed_in_compiled_code(kind, monkeypatch):
    read, holder, name, value, _ = READS[kind]
    aug, _ = rewritten(read)
    check_noticed_when_compiled(aug, X, lambda _: monkeypatch.setattr(holder, name, value))


def names(h, *args):
    from settings_of_a_test import options as o

    return o.t, Config(h), package.Maker(h), package.settings.Other(*args), isinstance(h, Marker)


def test_names_that_are_called_and_names_that_are_read_through_variables():
    assert {"Config", "Maker", "Other", "isinstance"} == calls_in(names.__code__)
    assert {("o", "t"), ("options", "t"), ("package", "Maker")} <= attributes_in(names.__code__)
    assert ("", "post") in attributes_in(Net.post.__code__)
