"""Objects that a forward makes: filled by its modules, handed on, and returned. Oracle: the model itself."""

from __future__ import annotations

import collections
import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError

# --- returned -------------------------------------------------------------------------------------------------------


class Result:
    """What a forward returns, with a method for its loss."""

    def __init__(self, logits: Tensor, rows: int) -> None:
        self.logits, self.rows = logits, rows

    def loss(self) -> Tensor:
        return self.logits.square().sum() / self.rows


def policy(h: Tensor, y: Tensor) -> Any:
    return torch.distributions.Categorical(logits=y)


def normal(h: Tensor, y: Tensor) -> Any:
    return torch.distributions.Independent(torch.distributions.Normal(y, nn.functional.softplus(h)), 1)


def own(h: Tensor, y: Tensor) -> Any:
    return Result(y, h.shape[0])


def nested(h: Tensor, y: Tensor) -> Any:
    made = Result(y, h.shape[0])
    made.inner, made.all = Result(h, 1), [Result(y * 2.0, 2), h]  # type: ignore[attr-defined]
    return {"result": made}


def changed_afterwards(h: Tensor, y: Tensor) -> Any:
    made = Result(y, h.shape[0])
    first = made.loss()
    made.logits = made.logits * 2.0
    return made, first


class Net(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.make = nn.Linear(4, 4), nn.Linear(4, 4), make

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.make(h, self.second(torch.tanh(h)))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = (
        value if isinstance(value, (list, tuple)) else list(value.values() if isinstance(value, dict) else ())
    )
    inner = list(inner) or list(vars(value).values() if hasattr(value, "__dict__") else ())
    return [t for entry in inner for t in tensors(entry)]


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.parametrize("make", [policy, normal, own, nested, changed_afterwards])
def test_an_object_that_the_forward_makes_is_made_in_every_call(make: Any, backward: Any) -> None:
    torch.manual_seed(0)
    model = Net(make)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(
        model,
        "first",
        rate=0.0,
        stop_grad=backward == "sparse",
        backward=backward,
        example_inputs=torch.randn(6, 4),
    )
    assert aug.plan.backward == backward
    for training in (True, False):
        x = torch.randn(8, 4)
        found, wanted = aug.train(training)(x), plain.train(training)(x)
        assert type(found) is type(wanted)
        pairs = list(zip(tensors(found), tensors(wanted), strict=True))
        assert pairs
        for a, b in pairs:
            torch.testing.assert_close(a, b)
        if backward == "dense":
            for net, out in ((aug, found), (plain, wanted)):
                sum(t.sum() for t in tensors(out)).backward()  # type: ignore[union-attr]
                assert net is not None
            for p, q in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad)


def test_it_has_its_methods_and_compiles() -> None:
    aug = ga.rewrite(Net(own), "first", stop_grad=True, example_inputs=torch.randn(6, 4))
    found = torch.compile(aug, fullgraph=True, backend="aot_eager")(torch.randn(6, 4))
    assert type(found) is Result
    assert found.rows == 6
    found.loss().backward()


def itself(h: Tensor, y: Tensor) -> Any:
    made = Result(y, 1)
    made.me = made  # type: ignore[attr-defined]
    return made


HELD = Result(torch.zeros(1), 0)


def the_models(h: Tensor, y: Tensor) -> Any:
    HELD.logits = y
    return HELD


@pytest.mark.parametrize(("make", "said"), [(itself, "holds itself"), (the_models, "Result")])
def test_what_is_no_object_of_one_call_is_refused(make: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        ga.rewrite(Net(make), "first", example_inputs=torch.randn(6, 4))


# --- filled ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, fill: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.fill = nn.Linear(4, 4), fill

    def forward(self, x: Tensor, held: Any) -> Tensor:
        h = torch.tanh(self.layer(x))
        self.fill(held, h)
        return h


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        return torch.tanh(self.layer(torch.cat([x, skips.pop()], -1)))


class UNet(nn.Module):
    """Hands one list to all of its blocks: those that go down append, those that go up pop."""

    def __init__(self, while_there_are: bool = False) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block(lambda held, h: held.append(h)) for _ in range(2))
        self.up, self.again = nn.ModuleList(Up() for _ in range(2)), Up()
        self.while_there_are = while_there_are

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x, skips)
        if self.while_there_are:
            while skips:
                x = self.again(x, skips)
            return x
        for block in self.up:
            x = block(x, skips)
        return x


class Collects(nn.Module):
    def __init__(self, make: Callable[[], Any], fill: Any, read: Any) -> None:
        super().__init__()
        self.blocks, self.make, self.read = nn.ModuleList(Block(fill) for _ in range(3)), make, read

    def forward(self, x: Tensor) -> Tensor:
        held = self.make()
        for block in self.blocks:
            x = block(x, held)
        return x + self.read(held)  # type: ignore[no-any-return]


HOLDERS: dict[str, tuple[Any, Any, Any]] = {
    "a list": (list, lambda held, h: held.append(h), lambda held: sum(held)),
    "a dict": (dict, lambda held, h: held.update({len(held): h}), lambda held: held[0] * len(held)),
    "a deque": (collections.deque, lambda held, h: held.append(h), lambda held: held[-1]),
    "a namespace": (
        lambda: types.SimpleNamespace(total=0.0),
        lambda held, h: setattr(held, "total", held.total + h.mean()),
        lambda held: held.total,
    ),
    "one that nothing reads": (list, lambda held, h: held.append(h), lambda held: 0.0),
}


def filled(name: str) -> nn.Module:
    return UNet(name.endswith("while")) if name.startswith("U-Net") else Collects(*HOLDERS[name])


@pytest.mark.parametrize("name", [*HOLDERS, "U-Net", "U-Net, while"])
def test_what_modules_fill_is_filled_in_every_call(name: str) -> None:
    torch.manual_seed(0)
    model = filled(name)
    plain = copy.deepcopy(model)
    at = "down.1.layer" if isinstance(model, UNet) else "blocks.1"
    aug = ga.rewrite(
        model, at, transform=lambda h: h * 1.0, example_inputs=torch.randn(6, 4), allow_bypass=True
    )
    for training in (True, False):
        for rows in (6, 3):
            x = torch.randn(rows, 4)
            found, wanted = aug.train(training)(x), plain.train(training)(x)
            torch.testing.assert_close(found, wanted)
            found.sum().backward()
            wanted.sum().backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


class Counting(nn.Module):
    """Fills an object of the model's, which is there before and after a call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(lambda held, h: setattr(held, "calls", held.calls + 1))
        self.held = types.SimpleNamespace(calls=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.held)  # type: ignore[no-any-return]


def test_what_outlives_a_call_is_refused() -> None:
    with pytest.raises(CaptureError, match="fills or changes it"):
        ga.rewrite(Counting(), "block", example_inputs=torch.randn(6, 4))
