"""What is set on a rewritten model, modes and names, is what it is on a plain one. Oracle: the plain model."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Net(nn.Module):
    """Asks for what it may lack, and for its own mode, and keeps what a loop reads."""

    adapter: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(6, 6), nn.Linear(6, 3), torch.zeros(())
        self.meta = self.dense = 1.0  # names that a rewritten model has for itself

    def forward(self, x: Tensor) -> Any:
        h = self.body(x) * (2.0 if self.training else 1.0)
        if hasattr(self, "adapter"):
            h = self.adapter(h)
        self.aux = h.pow(2).mean()
        return self.head(h) * getattr(self, "gain", 1.0) * self.meta * self.dense


class Swept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def pair(model: nn.Module) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    plain, x = copy.deepcopy(model), torch.randn(5, 6)
    return ga.rewrite(model, at="body", rate=0.0, stop_grad=False, example_inputs=x), plain, x


def same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(one(x), other(x))


def layer() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(6, 6)


@pytest.mark.parametrize("modes", [(False, False, False), (True, False, True), (False, True, True)], ids=str)
def test_modes_set_one_by_one_are_those_of_the_forward_and_of_copies(modes: tuple[bool, ...]) -> None:
    """As trainers put them back after an evaluation."""
    aug, plain, x = pair(Net())
    aug.eval()
    plain.eval()
    for model in (aug, plain):
        for name, mode in zip(("", "body", "head"), modes, strict=True):
            model.get_submodule(name).training = mode
    for twin in (aug, copy.copy(aug), copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert twin.training == modes[0]
        same(twin, plain, x)
    assert ga.strip(aug).training == modes[0]


def exchange(m: Any) -> None:
    del m.head
    m.head = layer()


SETS: dict[str, Callable[[Any], Any]] = {
    "gain": lambda m: setattr(m, "gain", 2.0),
    "adapter": lambda m: setattr(m, "adapter", layer()),
    "add_module": lambda m: m.add_module("adapter", layer()),
    "meta": lambda m: setattr(m, "meta", 3.0),
    "dense": lambda m: setattr(m, "dense", 3.0),
    "deleted and set": exchange,
}


@pytest.mark.parametrize("name", SETS)
def test_what_the_forward_looks_for_and_lacked_is_found_or_refused(name: str) -> None:
    aug, plain, x = pair(Net())
    for model in (aug, plain):
        SETS[name](model)
    same(aug.eval(), plain.eval(), x)
    aug.train()
    if name in ("gain", "adapter", "add_module"):
        with pytest.raises(AssumptionViolated, match="Call rewrite again"):
            aug(x)
    else:
        same(aug, plain.train(), x)
    assert list(aug.state_dict()) == list(plain.state_dict())
    again = ga.rewrite(ga.strip(aug), at="body", rate=0.0, stop_grad=False, example_inputs=x)
    same(again.train(), plain.train(), x)


def test_a_child_is_one_of_those_that_a_forward_goes_through() -> None:
    aug, plain, x = pair(Swept())
    for model in (aug, plain):
        model.tail = layer()
    same(aug.eval(), plain.eval(), x)
    with pytest.raises(AssumptionViolated, match="tail"):
        aug.train()(x)


def test_a_child_that_no_forward_asks_for_is_no_part_of_the_plain_model() -> None:
    aug, _, _ = pair(Net())
    aug.projector = layer()
    assert "projector.weight" in aug.state_dict()
    assert "projector.weight" not in ga.strip(aug).state_dict()


def test_what_is_preset_is_what_the_forward_sets() -> None:
    aug, plain, x = pair(Net())
    for model in (aug, plain):
        model.aux, model.epoch = 0.0, 1
        model(x)
        assert model.epoch == 1
    torch.testing.assert_close(aug.aux, plain.aux)


def test_a_bound_method_of_another_object_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    aug, _, x = pair(Net())

    class Caller:
        def run(self) -> Any:
            return aug.body(x)

    aug.callback = Caller().run
    aug.train().callback()
    assert not [w for w in recwarn if "runs the model as it is" in str(w.message)]


def test_apply_gives_the_root_as_a_model_of_its_class() -> None:
    class Spares(Net):
        def apply(self, fn: Callable[[nn.Module], None]) -> Any:
            self.head.apply(fn)
            return self

    seen: list[type] = []
    pair(Net())[0].apply(lambda m: seen.append(type(m)))
    assert Net in seen
    aug, plain, x = pair(Spares())
    for model in (aug, plain):
        model.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Linear) else None)
    same(aug.eval(), plain.eval(), x)


def test_what_python_looks_up_on_the_class() -> None:
    class Switches(Net):
        def __enter__(self) -> Any:
            self.head.eval()
            return self

        def __exit__(self, *_: object) -> None:
            self.head.train()

        def __matmul__(self, x: Tensor) -> Any:
            return self.head(x)

    aug, plain, x = pair(Switches())
    with aug as entered:
        assert entered is aug
        assert not aug.head.training
    assert aug.head.training
    torch.testing.assert_close(aug @ x, plain @ x)


def as_itself(aug: Any) -> Iterator[Any]:
    aug.views = [aug]
    yield lambda twin: twin.views[0]
    aug.body.root = [aug]
    yield lambda twin: twin.body.root[0]
    aug.head.register_forward_hook(functools.partial(hook, aug))
    yield lambda twin: next(iter(twin.head._forward_hooks.values())).args[0]


def hook(*_: Any) -> None:
    pass


def test_what_refers_to_a_rewritten_model_refers_to_its_copy_in_a_copy() -> None:
    aug, plain, x = pair(Net())
    for of in as_itself(aug):
        for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
            assert of(twin) is twin
            same(twin, plain, x)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, batch: dict[str, Tensor]) -> Any:
        h = self.body(batch["x"])
        return self.head(h.masked_fill(batch["mask"], 0.0))


def test_an_export_that_does_not_look_into_python_takes_a_dict_of_tensors() -> None:
    batch = {"x": torch.randn(3, 4, 6), "mask": torch.ones(3, 4, 1) > 2}
    model = Masked()
    aug = ga.rewrite(model, at="body", example_inputs=(batch,)).eval()
    exported = torch.export.export(aug, (batch,), strict=False).module()
    torch.testing.assert_close(exported(batch), model.eval()(batch))


def test_another_tracer_keeps_the_checks_of_what_modules_return() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rnn = nn.Linear(6, 6), nn.LSTM(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            h = self.body(x)
            states, _ = self.rnn(h * 2 if h.shape[1] == 4 else h)
            return states

    model, x = Recurrent(), torch.randn(3, 4, 6)
    aug = ga.rewrite(model, at="body", example_inputs=x).eval()
    traced = fx.symbolic_trace(aug)
    torch.testing.assert_close(traced(x), model.eval()(x))
    with pytest.raises(AssumptionViolated, match=r"shape\[1\] == 4"):
        traced(torch.randn(3, 5, 6))
