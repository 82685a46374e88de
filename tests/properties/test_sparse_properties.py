"""Properties of the sparse backward on drawn networks: equal to the dense one, or not chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga

many = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
few = settings(many, max_examples=5)
WIDTH = 4
MODULES = ["mix", "layernorm", "groupnorm", "tanh", "residual"]
PLAIN = ["gelu", "scale", "reshape", "symbolic", "softmax", "stack", "masked", "constant", "inplace"]
JOINING = ["add", "gate", "cat"]
COUPLING = ["centre", "roll", "maximum", "across", "cumsum", "one over rows"]


@dataclass(frozen=True)
class Step:
    """An instruction, the earlier values it takes, and the layer if it has one."""

    kind: str
    inputs: tuple[int, int]
    layer: int


class Residual(nn.Module):
    """A closed block with an activation and a way round it."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.mix = mixer(image)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.mix(x))


def mixer(image: bool) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if image else nn.Linear(WIDTH, WIDTH)


def layer(kind: str, image: bool) -> nn.Module:
    match kind:
        case "mix":
            return mixer(image)
        case "layernorm":
            return nn.GroupNorm(1, WIDTH) if image else nn.LayerNorm(WIDTH)
        case "groupnorm":
            return nn.GroupNorm(2, WIDTH) if image else nn.Sequential(nn.GroupNorm(2, WIDTH), nn.Tanh())
        case "tanh":
            return nn.Tanh()
        case _:
            return Residual(image)


class Net(nn.Module):
    """Follows its instructions up to ``cut`` and from there: features, a second input, a mask, to N×3."""

    def __init__(self, image: bool, ahead: list[Step], behind: list[Step], names: list[str]) -> None:
        super().__init__()
        self.image, self.ahead, self.behind = image, ahead, behind
        self.blocks = nn.ModuleList(layer(n, image) for n in names)
        self.first, self.cut, self.head = mixer(image), mixer(image), nn.Linear(WIDTH, 3)
        self.gain = nn.Parameter(torch.full((1, WIDTH, *[1] * (2 * image)), 0.9))

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(x.dtype).view(mask.shape[0], *[1] * (x.dim() - 1))
        h = self.follow(self.ahead, [self.first(x), other], weight)
        last = self.follow(self.behind, [self.cut(h)], weight)
        return self.head(last.mean((2, 3)) if self.image else last)

    def follow(self, steps: list[Step], values: list[Tensor], weight: Tensor) -> Tensor:
        """Run the steps; what none of them takes is added to the last, so that no call is for nothing."""
        unused = set(range(len(values)))
        for step in steps:
            taken = step.inputs if step.kind in JOINING else step.inputs[:1]
            unused -= {i % len(values) for i in taken}
            unused.add(len(values))
            values.append(self.run(step, values, weight))
        total = values[-1]
        for i in sorted(unused - {len(values) - 1}):
            total = total + 0.1 * values[i]
        return total

    def run(self, step: Step, values: list[Tensor], weight: Tensor) -> Tensor:
        first, second = values[step.inputs[0] % len(values)], values[step.inputs[1] % len(values)]
        match step.kind:
            case "layer":
                return self.blocks[step.layer % len(self.blocks)](first)
            case "gelu":
                return F.gelu(first)
            case "scale":
                return first * self.gain + 0.1
            case "reshape":
                return first.reshape(first.shape[0], -1).view(first.shape)
            case "symbolic":
                return first + self.gain.expand(first.shape[0], *self.gain.shape[1:])
            case "softmax":
                return torch.softmax(first, 1)
            case "stack":
                return torch.stack([first, first.roll(1, 1)], 1).mean(1)
            case "masked":
                return first * weight
            case "constant":
                return first + torch.arange(WIDTH).view(-1, *[1] * (2 * self.image))
            case "inplace":
                return first.clone().mul_(0.7)
            case "add":
                return first + second
            case "gate":
                return first * torch.sigmoid(second)
            case "cat":
                return torch.cat([first, second], 1)[:, ::2]
            case "centre":
                return first - first.mean(0)
            case "roll":
                return first + first.roll(1, 0)
            case "maximum":
                return first / first.abs().amax().clamp(min=0.1)
            case "across":
                flat = first.flatten(1)
                return (torch.softmax(flat @ flat.T, 1) @ flat).view(first.shape)
            case "cumsum":
                return first.cumsum(0)
            case "one over rows":
                return first / first.shape[0]
            case _:
                return first + torch.arange(first.shape[0]).view(-1, *[1] * (first.dim() - 1))


@st.composite
def steps(draw: st.DrawFn, least: int) -> list[Step]:
    kinds = st.sampled_from(["layer", "layer", "layer", *PLAIN, *JOINING])
    latest = st.sampled_from([-1, -1, -1, 0, 1, 2])  # mostly what came last: chains with skips and branches
    one = st.builds(Step, kinds, st.tuples(latest, st.integers(-2, 3)), st.integers(0, 3))
    return draw(st.lists(one, min_size=least, max_size=5))


@st.composite
def networks(draw: st.DrawFn, coupling: str | None = None) -> tuple[Net, dict[str, Tensor]]:
    """A network and a batch; ``coupling`` is put before the cut, where the value at the cut needs it."""
    image = draw(st.booleans())
    ahead, behind = draw(steps(1)), draw(steps(0))
    if coupling is not None:
        ahead.append(Step(coupling, (-1, -1), 0))
    torch.manual_seed(draw(st.integers(0, 99)))
    names = draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=3))
    net = Net(image, ahead, behind, names).double()
    rows = draw(st.integers(2, 7))
    shape = (rows, WIDTH, *((3, 2) if image else ()))
    x, other = torch.randn(shape).double(), torch.randn(shape).double()
    mask = torch.rand(rows) < 0.8
    mask[0] = True
    return net, {"x": x, "other": other, "mask": mask if draw(st.booleans()) else mask.long()}


def gradients(aug: Any, x: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradient for the inputs and all parameters; zeros where there is none."""
    leaves = [x["x"].clone().requires_grad_(), x["other"].clone().requires_grad_()]
    out = aug(leaves[0], leaves[1], x["mask"])
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    inputs = [*leaves, *aug.parameters()]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss.detach(), [
        torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)
    ]


def impose(aug: Any, rows: Tensor, noise: Tensor) -> None:
    aug.deep_augment.draw_rows = lambda count, device: rows
    aug.deep_augment.draw_noise = lambda h: noise[rows] if len(h) != len(rows) else noise


def sparse_equals_dense(case: Any, subset: float, rate: float, seed: int) -> None:
    net, x = case
    aug = ga.rewrite(
        net, "cut", subset=subset, rate=rate, stop_grad=True, backward="sparse", example_inputs=x
    )
    generator = torch.Generator().manual_seed(seed)
    count = len(x["x"])
    rows = torch.randperm(count, generator=generator) < round(subset * count)
    noise = (torch.rand(x["x"].shape, generator=generator) >= rate).double() / (1 - rate)
    impose(aug, rows, noise)
    found, mine = gradients(aug, x)
    with aug.dense():
        expected, theirs = gradients(aug, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    scale = max(float(g.abs().max()) for g in theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * scale


def found_exact(case: Any) -> None:
    net, x = case
    plan = ga.rewrite(net, "cut", subset=0.5, stop_grad=True, example_inputs=x).plan
    assert plan.backward == "sparse" or "of the FLOPs only" in plan.reason, plan.reason


def never_sparse(data: Any, kind: str) -> None:
    net, x = data.draw(networks(coupling=kind))
    plan = ga.rewrite(net, "cut", subset=0.9, stop_grad=True, example_inputs=x).plan
    assert plan.backward == "dense"
    assert plan.reason


STEPS = given(networks(), st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 99))
COUPLED = given(st.data(), st.sampled_from(COUPLING))


@few
@STEPS
def test_sparse_equals_dense(case: Any, subset: float, rate: float, seed: int) -> None:
    sparse_equals_dense(case, subset, rate, seed)


@pytest.mark.long  # a second for each network
@many
@STEPS
def test_sparse_equals_dense_on_many(case: Any, subset: float, rate: float, seed: int) -> None:
    sparse_equals_dense(case, subset, rate, seed)


@few
@given(networks())
@pytest.mark.long
def test_a_network_without_coupling_is_found_exact(case: Any) -> None:
    found_exact(case)


@pytest.mark.long  # a second for each network
@many
@given(networks())
def test_many_networks_without_coupling_are_found_exact(case: Any) -> None:
    found_exact(case)


@few
@COUPLED
@pytest.mark.long
def test_auto_is_never_sparse_where_rows_are_coupled(data: Any, kind: str) -> None:
    never_sparse(data, kind)


@pytest.mark.long  # two seconds for each network
@many
@COUPLED
def test_auto_is_never_sparse_where_rows_are_coupled_in_many_networks(data: Any, kind: str) -> None:
    never_sparse(data, kind)
