"""Properties of rewriting, on drawn networks, against plain forward hooks on the original.

A network is a list of instructions, each a layer, a shared layer, a residual or branching combination or a
functional operation; its forward follows them, so that capture meets real Python code.
"""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga

pytestmark = pytest.mark.thorough

property_test = settings(
    max_examples=60 if os.environ.get("GRAPHAUG_THOROUGH") else 5,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
WIDTH = 4
LAYERS = ["mix", "norm", "relu", "drop", "inner"]
BINARY = ["add", "mul", "cat", "torch.add"]
UNARY = ["tanh", "gelu", "scale", "method", "reshape", "inplace"]


@dataclass(frozen=True)
class Step:
    """One instruction: ``kind``, the earlier values that it takes, and for a layer which one."""

    kind: str
    inputs: tuple[int, ...]
    layer: int = 0


@dataclass(frozen=True)
class Drawn:
    """A network to build: whether it is convolutional, its layers, its instructions."""

    image: bool
    layers: tuple[str, ...]
    steps: tuple[Step, ...] = field(repr=True)


class Inner(nn.Module):
    """A module of its own with a residual inside."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.mix, self.act = mixer(image), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.mix(x)) + x


def mixer(image: bool) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if image else nn.Linear(WIDTH, WIDTH)


def layer(kind: str, image: bool) -> nn.Module:
    if kind == "mix":
        return mixer(image)
    if kind == "norm":
        return nn.BatchNorm2d(WIDTH) if image else nn.LayerNorm(WIDTH)
    return {"relu": nn.ReLU, "drop": lambda: nn.Dropout(0.3), "inner": lambda: Inner(image)}[kind]()


class Net(nn.Module):
    """Follows its instructions."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.drawn = drawn
        self.blocks = nn.ModuleList(layer(kind, drawn.image) for kind in drawn.layers)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.tensor(0.1))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.drawn.steps:
            values.append(self.run(step, [values[i] for i in step.inputs]))
        last = values[-1] * self.gain + self.offset
        return self.head(last.mean((2, 3)) if self.drawn.image else last)

    def run(self, step: Step, given: list[Tensor]) -> Tensor:
        first, second = given[0], given[-1]
        match step.kind:
            case "layer":
                return self.blocks[step.layer](first)
            case "add":
                return first + second
            case "torch.add":
                return torch.add(first, second, alpha=0.5)
            case "mul":
                return first * torch.sigmoid(second)
            case "cat":
                return torch.cat([first, second], 1)[:, ::2]
            case "tanh":
                return torch.tanh(first)
            case "gelu":
                return F.gelu(first)
            case "scale":
                return first * 0.5 + 0.1
            case "method":
                return first.clamp(min=-1).contiguous()
            case "reshape":
                return first.reshape(first.shape[0], -1).view(first.shape)
            case _:
                return F.relu(first.clone(), inplace=True)


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    image = draw(st.booleans())
    layers = tuple(draw(st.lists(st.sampled_from(LAYERS), min_size=2, max_size=4)))
    steps: list[Step] = []
    for i in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["layer", "layer", "layer", *BINARY, *UNARY]))
        # mostly what came last, sometimes anything before: chains with skips and branches
        earlier = [i, *draw(st.lists(st.integers(0, i), min_size=1, max_size=1))]
        inputs = tuple(earlier) if kind in BINARY else (draw(st.sampled_from([i, i, i, earlier[1]])),)
        steps.append(Step(kind, inputs, draw(st.integers(0, len(layers) - 1))))
    return Drawn(image, layers, tuple(steps))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Net, Tensor, Any, dict[str, Any]]:
    """A network, a batch, one to three of its module sites, and options."""
    drawn = draw(networks())
    torch.manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    net = Net(drawn).to(dtype)
    rows = draw(st.integers(1, 4)) * 2
    size = (draw(st.integers(1, 4)), draw(st.integers(2, 4))) if drawn.image else ()
    x = torch.randn(rows, WIDTH, *size, dtype=dtype)
    if drawn.image:
        assume(rows * size[0] * size[1] > 1)
    everything = ga.sites(net, depth=draw(st.sampled_from([2, 3])))
    names = sorted({str(s) if s.calls > 1 else s.path for s in everything if s.op is None})
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    pairing = draw(st.sampled_from(["any", "one-sided", "together"]))
    probability = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1)
    options = {
        "subset": draw(probability) * (0.5 if pairing == "one-sided" else 1.0),
        "stop_grad": draw(st.booleans()),
        "sampling": draw(st.sampled_from(["exact", "bernoulli"])),
        "granularity": draw(st.sampled_from(["element", "channel", "position"])),
        "pairing": pairing,
        "allow_bypass": True,
        "backward": "dense",  # a sparse one draws in another order, and has properties of its own
    }
    rates = draw(st.booleans())
    at = {name: draw(probability) for name in chosen} if rates else chosen
    if not rates:
        options["rate"] = draw(probability)
    return net, x, at, options


def with_hooks(net: Net, aug: ga.AugmentedModule, x: Tensor, stop: bool) -> Tensor:
    """The definition in a few lines: every hook draws from its own node, in the order of the calls."""
    handles = []

    def hook(node: ga.DeepAugment, call: int) -> Any:
        seen = iter(range(999))

        def augment(_: nn.Module, __: Any, h: Tensor) -> Tensor:
            if next(seen) != call:
                return h
            mask = node.draw_rows(h.shape[0], h.device)
            keep = node.draw_noise(h).expand_as(h)
            pieces = []
            for i in range(h.shape[0]):
                row = h[i] * keep[i] if mask[i] else h[i]
                pieces.append(row.detach() if stop and mask[i] else row)
            return torch.stack(pieces)

        return augment

    for target, node in aug.augmentations.items():
        augment = hook(node, target.call or 0)
        if target.path:
            handles.append(net.get_submodule(target.path).register_forward_hook(augment))
        else:
            handles.append(net.register_forward_pre_hook(lambda m, args, f=augment: (f(m, None, args[0]),)))
    try:
        return net(x)
    finally:
        for handle in handles:
            handle.remove()


def gradients(net: Net, x: Tensor, out: Tensor) -> list[Tensor]:
    """Of a fixed projection, for the input and all parameters; zeros where there is none."""
    inputs = [x, *net.parameters()]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    if not out.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


@property_test
@given(cases(), st.integers(0, 999))
def test_rewritten_equals_forward_hooks_in_value_and_gradient(case: Any, seed: int) -> None:
    net, x, at, options = case
    aug = ga.rewrite(net, at, **options)
    x.requires_grad_()
    statistics = copy.deepcopy(net.state_dict())
    torch.manual_seed(seed)
    found = aug(x)
    mine = gradients(net, x, found)
    after = copy.deepcopy(net.state_dict())
    net.load_state_dict(statistics)

    torch.manual_seed(seed)
    expected = with_hooks(net, aug, x, options["stop_grad"])
    theirs = gradients(net, x, expected)
    tight = {"rtol": 1e-9, "atol": 1e-11} if x.dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **tight)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **tight)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(after[name], value, **tight)


@pytest.mark.long
@property_test
@given(cases())
def test_eval_is_bit_identical_at_any_batch_size(case: Any) -> None:
    net, x, at, options = case
    aug = ga.rewrite(net, at, **options)
    aug.eval()
    for batch in (x, x[:1], torch.cat([x, x, x])):
        assert torch.equal(aug(batch), net(batch))


@property_test
@given(cases())
@pytest.mark.long
def test_strip_gives_back_the_model_and_a_rewrite_leaves_it_alone(case: Any) -> None:
    net, _, at, options = case
    net.blocks[0].eval()
    before = [(n, id(m), m.training) for n, m in net.named_modules()]
    tensors = {n: (id(t), t._version) for n, t in net.state_dict(keep_vars=True).items()}
    aug = ga.rewrite(net, at, **options)
    assert ga.strip(aug) is net
    assert [(n, i) for n, i, _ in before] == [(n, id(m)) for n, m in net.named_modules()]
    assert {n: (id(t), t._version) for n, t in net.state_dict(keep_vars=True).items()} == tensors
    assert all(p.requires_grad for p in net.parameters())


@property_test
@given(cases())
@pytest.mark.long
def test_state_dicts_are_interchangeable(case: Any) -> None:
    net, x, at, options = case
    aug = ga.rewrite(net, at, **options)
    assert list(aug.state_dict()) == list(net.state_dict())
    other = Net(net.drawn).to(x.dtype)
    other.load_state_dict(aug.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), net.eval()(x))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    aug.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(aug.eval()(x), other(x))


@property_test
@given(cases(), st.sampled_from(["deepcopy", "pickle"]), st.integers(0, 999))
@pytest.mark.long
def test_copies_draw_and_compute_the_same(case: Any, how: str, seed: int) -> None:
    net, x, at, options = case
    aug = ga.rewrite(net, at, **options)
    twin = copy.deepcopy(aug) if how == "deepcopy" else pickle.loads(pickle.dumps(aug))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}
    assert str(twin.plan) == str(aug.plan)
    for mode in (True, False):
        aug.train(mode)
        twin.train(mode)
        torch.manual_seed(seed)
        expected = aug(x)
        torch.manual_seed(seed)
        assert torch.equal(twin(x), expected)
    assert list(twin.state_dict()) == list(net.state_dict())
    assert type(ga.strip(twin)) is Net


@pytest.mark.long
@property_test
@given(cases())
def test_verify_agrees(case: Any) -> None:
    net, x, at, options = case
    ga.verify(ga.rewrite(net, at, **options), x, tolerance=1e-3)
