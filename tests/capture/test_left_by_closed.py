"""What a closed module leaves behind when it is called, and opened code reads: refused by its name."""

import collections
import copy
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphaug as ga
from graphaug.errors import CaptureError

LAST: dict[str, Any] = {}


@dataclasses.dataclass
class Info:
    hw: tuple[int, ...] = (8, 8)


class Encoder(nn.Module):
    """Notes the size of its images somewhere."""

    seen: Any = (8, 8)

    def __init__(self, leave) -> None:
        super().__init__()
        self.conv, self.leave = nn.Conv2d(3, 4, 3, 2, 1), leave
        self.kept, self.held, self.info, self.recent = None, {}, Info(), collections.deque(maxlen=1)
        self.space, self.array = types.SimpleNamespace(hw=(8, 8)), np.zeros(2, int)

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        self.leave(self, tuple(x.shape[-2:]), given)
        return self.conv(x)


class Net(nn.Module):
    def __init__(self, leave, read, given=lambda: None) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(leave), nn.Conv2d(4, 2, 1)
        self.read, self.given = read, given

    def forward(self, x: Tensor) -> Tensor:
        given = self.given()
        h = self.head(self.encoder(x, given))
        return F.interpolate(h, size=self.read(self.encoder, given))


# how it is left, how it is read, and what names it
OF_THE_MODULE = {
    "a size": (lambda m, hw, _: setattr(m, "kept", torch.Size(hw)), lambda m, _: m.kept, "kept"),
    "a list": (lambda m, hw, _: setattr(m, "kept", [hw]), lambda m, _: m.kept[0], "kept"),
    "a dict": (lambda m, hw, _: setattr(m, "kept", {"hw": hw}), lambda m, _: m.kept["hw"], "kept"),
    "a dict, filled": (lambda m, hw, _: m.held.update(hw=hw), lambda m, _: m.held["hw"], "held"),
    "a dataclass": (lambda m, hw, _: setattr(m, "kept", Info(hw)), lambda m, _: m.kept.hw, "kept"),
    "a dataclass, filled": (lambda m, hw, _: setattr(m.info, "hw", hw), lambda m, _: m.info.hw, "info"),
    "a namespace, filled": (lambda m, hw, _: setattr(m.space, "hw", hw), lambda m, _: m.space.hw, "space"),
    "a deque": (lambda m, hw, _: m.recent.append(hw), lambda m, _: m.recent[-1], "recent"),
    "an array": (
        lambda m, hw, _: m.array.__setitem__(slice(None), hw),
        lambda m, _: tuple(m.array.tolist()),
        "array",
    ),
    "of its class": (lambda m, hw, _: setattr(Encoder, "seen", hw), lambda m, _: m.seen, "seen"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize(("leave", "read", "name"), OF_THE_MODULE.values(), ids=OF_THE_MODULE)
def test_in_the_module(leave, read, name: str, examples: bool) -> None:
    given = {"example_inputs": torch.randn(2, 3, 16, 16)} if examples else {}
    message = (
        rf"(reads 'encoder\.{name}', which 'encoder' sets or fills|keeps 'encoder\.{name}' from one call to)"
    )
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(Net(leave, read), at="encoder", **given)


HANDED = {
    "a dict": (lambda m, hw, d: d.update(hw=hw), lambda m, d: d["hw"], dict),
    "a list": (lambda m, hw, d: d.extend(hw), lambda m, d: tuple(d), list),
    "a namespace": (lambda m, hw, d: setattr(d, "hw", hw), lambda m, d: d.hw, types.SimpleNamespace),
    "a deque": (lambda m, hw, d: d.append(hw), lambda m, d: d[0], collections.deque),
}


@pytest.mark.parametrize(("leave", "read", "given"), HANDED.values(), ids=HANDED)
def test_what_it_is_handed_is_filled_in_every_call(leave, read, given) -> None:
    """It is opened: what it fills is a value of the graph."""
    model = Net(leave, read, given)
    aug = ga.rewrite(
        model, at="encoder", transform=lambda h: h * 1.0, example_inputs=torch.randn(2, 3, 16, 16)
    )
    assert aug.plan.opened == ("encoder",)
    for size in (16, 20):
        x = torch.randn(3, 3, size, size)
        torch.testing.assert_close(aug.train()(x), model(x))


def test_in_a_global_table() -> None:
    LAST["hw"] = (8, 8)
    model = Net(lambda m, hw, _: LAST.update(hw=hw), lambda m, _: LAST["hw"])
    with pytest.raises(
        CaptureError,
        match=r"may read the global 'LAST'\['hw'\], which is changed in its call, as by a closed module or a hook",
    ):
        ga.rewrite(model, at="encoder", example_inputs=torch.randn(2, 3, 16, 16))


def test_by_a_hook_of_it() -> None:
    LAST["hw"] = (8, 8)
    model = Net(lambda m, hw, _: None, lambda m, _: LAST["hw"])
    model.encoder.register_forward_hook(lambda m, args, out: LAST.update(hw=tuple(args[0].shape[-2:])))
    with pytest.raises(
        CaptureError,
        match=r"may read the global 'LAST'\['hw'\], which is changed in its call, as by a closed module or a hook",
    ):
        ga.rewrite(model, at="encoder", example_inputs=torch.randn(2, 3, 16, 16))


class Experts(nn.Module):
    """Which rows go where depends on the data, so that it does not run without them."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.keep, self.loss, self.losses = keep, None, []

    def forward(self, x: Tensor, losses: list[Tensor]) -> Tensor:
        weights = self.gate(x).softmax(-1)
        chosen, out = weights.argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            out = out.index_add(0, rows, expert(x[rows]))
        self.keep(self, weights.mean(0).square().sum(), losses)
        return out


class Mixture(nn.Module):
    def __init__(self, keep, read) -> None:
        super().__init__()
        self.stem, self.moe, self.head, self.read = nn.Linear(5, 8), Experts(keep), nn.Linear(8, 2), read

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        losses: list[Tensor] = []
        h = self.head(self.moe(self.stem(x), losses))
        return h, self.read(self.moe, losses)


LOSSES = {
    "an attribute": (lambda m, loss, _: setattr(m, "loss", loss), lambda m, _: m.loss, "'moe.loss'"),
    "a list": (lambda m, loss, _: setattr(m, "losses", [loss]), lambda m, _: m.losses[-1], "'moe.losses'"),
}


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize(("keep", "read", "name"), LOSSES.values(), ids=LOSSES)
def test_a_loss_of_code_that_needs_data(keep, read, name: str, examples: bool) -> None:
    given = {"example_inputs": torch.randn(6, 5)} if examples else {}
    with pytest.raises(CaptureError, match=name):
        ga.rewrite(Mixture(keep, read), at="stem", **given)


@pytest.mark.parametrize("at", ["stem", "moe"])
def test_a_list_that_it_is_handed_holds_the_loss(at: str) -> None:
    """Of code that needs the data: opened, as it fills a list of the forward's."""
    model = Mixture(lambda m, loss, losses: losses.append(loss), lambda m, losses: sum(losses))
    plain = copy.deepcopy(model)
    aug = ga.rewrite(
        model, at, transform=lambda h: h * 1.0, example_inputs=torch.randn(6, 5), allow_bypass=True
    )
    for rows in (6, 4, 9):
        x = torch.randn(rows, 5)
        for net in (aug.train(), plain.train()):
            out, loss = net(x)
            (out.sum() + loss).backward()
        assert torch.equal(aug(x)[0], plain(x)[0])
        assert torch.equal(aug(x)[1], plain(x)[1])
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_what_nothing_reads_may_be_left() -> None:
    model = Net(lambda m, hw, _: m.held.update(hw=hw), lambda m, _: (4, 4))
    aug = ga.rewrite(model, at="encoder", subset=0.0, example_inputs=torch.randn(2, 3, 16, 16))
    x = torch.randn(3, 3, 20, 24)
    torch.testing.assert_close(aug(x), model(x), rtol=0, atol=0)
    assert model.encoder.held == {"hw": (20, 24)}


class Hooked(nn.Module):
    """A hook keeps the features of a layer in a table of the model, for whoever looks there later."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.features = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 2), {}
        self.body[0].register_forward_hook(lambda m, args, out: self.features.update(first=out.detach()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("at", ["body", "body.0", "head", "input"])
def test_a_hook_fills_a_table_in_every_call(at: str) -> None:
    model = Hooked()
    aug = ga.rewrite(model, at=at, subset=0.0, example_inputs=torch.randn(4, 5))
    for rows in (4, 7):
        x = torch.randn(rows, 5)
        out = aug(x)
        kept = model.features["first"]
        torch.testing.assert_close(out, model(x), rtol=0, atol=0)
        torch.testing.assert_close(kept, model.body[0](x), rtol=0, atol=0)


class Fills(nn.Module):
    """Hands on the dict that it was given, with its own features in it, as sentence-transformers' modules do."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, self.name = nn.Linear(5, 5), name

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features[self.name] = self.layer(features["x"])
        return features


def test_a_dict_that_is_filled_with_tensors_and_handed_on() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Fills("x"), Fills("out")

        def forward(self, x: Tensor) -> Tensor:
            features = {"x": x, "kind": "text"}
            for module in (self.first, self.second):
                features = module(features)
            return features["out"]

    model = Chain()  # the second module stays closed
    aug = ga.rewrite(model, at="first.layer", subset=0.0, example_inputs=torch.randn(4, 5))
    x = torch.randn(7, 5)
    torch.testing.assert_close(aug(x), model(x), rtol=0, atol=0)
