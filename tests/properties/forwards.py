"""Idioms of forwards: each a small module with a closed layer, written as people write them.

Every function below is the forward of a block; what its constructor needs beside the layer is given to `idiom`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 6
GLOBAL = {"scale": 0.5, "calls": 0}
TABLE = torch.linspace(0.5, 1.5, WIDTH)
IDIOMS: dict[str, type[nn.Module]] = {}


class Block(nn.Module):
    """A block with one closed layer; ``extra`` gives the attributes that its forward needs."""

    extra: Callable[[nn.Module], dict[str, Any]] = staticmethod(lambda module: {})
    factor = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        for name, value in type(self).extra(self).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    @property
    def half(self) -> float:
        return self.factor / 2

    def between_steps(self) -> None:
        """What the user's loop does to a block after every step."""


def idiom(
    *, between_steps: Callable[[Any], Any] = Block.between_steps, **extra: Callable[[], Any]
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the forward of a block; ``extra`` makes the attributes that it needs."""

    def register(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        made = staticmethod(lambda module: {name: make() for name, make in extra.items()})
        IDIOMS[forward.__name__] = type(
            forward.__name__.title(),
            (Block,),
            {"forward": forward, "extra": made, "between_steps": between_steps},
        )
        return forward

    return register


class Double(torch.autograd.Function):
    """Identity with twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Pair:
    """Something of the user's that holds a tensor."""

    def __init__(self, left: Tensor, right: float) -> None:
        self.left, self.right = left, right

    def product(self) -> Tensor:
        return self.left * self.right


def with_a_hook() -> nn.Module:
    """A layer with a hook that doubles what comes out."""
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_hook(doubled)
    return layer


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def closure(number: float) -> Callable[[Tensor], Tensor]:
    return lambda h: h * number


def helper(h: Tensor, scale: float = 0.7) -> Tensor:
    return h * scale


@functools.cache
def ramp(width: int) -> Tensor:
    return torch.arange(float(width))


@idiom()
def plain(self, h):
    return torch.relu(self.inner(h))


@idiom(calls=lambda: 0)
def counter(self, h):
    self.calls += 1
    return self.inner(h) * (1 + 0.1 * self.calls)


@idiom(last=lambda: None)
def keeps_a_tensor(self, h):
    self.last = self.inner(h)
    return self.last


@idiom(mean=lambda: torch.zeros(WIDTH))
def running_mean(self, h):
    h = self.inner(h)
    if self.training:
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return h - self.mean


@idiom(mean=lambda: torch.zeros(WIDTH))
def buffer_assigned(self, h):
    h = self.inner(h)
    self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
    return h - self.mean


@idiom(scale=lambda: nn.Parameter(torch.ones(WIDTH)))
def parameter_of_its_own(self, h):
    return self.inner(h) * self.scale


@idiom(scale=lambda: nn.Parameter(torch.ones(WIDTH)))
def parameter_written(self, h):
    with torch.no_grad():
        self.scale.mul_(0.9)
    return self.inner(h) * self.scale


@idiom(scale=lambda: nn.Parameter(torch.ones(WIDTH)))
def parameter_data_written(self, h):
    self.scale.data.clamp_(max=0.5)
    return self.inner(h) * self.scale


@idiom(act=lambda: closure(0.3))
def closure_kept(self, h):
    return self.act(self.inner(h))


@idiom(act=lambda: functools.partial(F.leaky_relu, negative_slope=0.2))
def partial_kept(self, h):
    return self.act(self.inner(h))


@idiom()
def global_read(self, h):
    return self.inner(h) * GLOBAL["scale"]


@idiom()
def global_counted(self, h):
    GLOBAL["calls"] += 1
    return self.inner(h) * GLOBAL["calls"]


@idiom()
def property_read(self, h):
    return self.inner(h) * self.half


@idiom()
def class_attribute(self, h):
    return self.inner(h) * type(self).factor


@idiom()
def class_counted(self, h):
    type(self).factor = type(self).factor + 0.1
    return self.inner(h) * self.factor


@idiom()
def default_argument(self, h, scale=0.4):
    return self.inner(h) * scale


@idiom()
def mutable_default(self, h, seen=[]):  # noqa: B006
    seen.append(h.shape[0])
    return self.inner(h) * len(seen)


@idiom()
def helper_called(self, h):
    return helper(self.inner(h), scale=0.9)


@idiom(more=lambda: nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)]))
def loop_over_children(self, h):
    for layer in self.more:
        h = layer(h) + h
    return self.inner(h)


@idiom(more=lambda: nn.ModuleDict({"a": nn.Linear(WIDTH, WIDTH), "b": nn.Tanh()}))
def dict_of_children(self, h):
    for name, layer in self.more.items():
        h = layer(h) if name != "c" else h
    return self.inner(h)


@idiom(more=lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Tanh()))
def slice_of_a_sequential(self, h):
    return self.inner(self.more[:2](h))


@idiom(table=lambda: {torch.float32: 2.0, torch.float64: 3.0})
def dict_look_up(self, h):
    return self.inner(h) * self.table.get(h.dtype, 1.0)


@idiom(widths=lambda: {WIDTH, 2 * WIDTH})
def set_look_up(self, h):
    return self.inner(h) * 2 if h.shape[1] in self.widths else self.inner(h)


@idiom()
def shape_branch(self, h):
    return self.inner(h) * 2 if h.shape[-1] > 3 else self.inner(h)


@idiom()
def rows_branch(self, h):
    return self.inner(h) * 2 if h.shape[0] > 4 else self.inner(h)


@idiom()
def type_asked(self, h):
    return self.inner(h * 2 if type(h) is Tensor else h)


@idiom()
def isinstance_asked(self, h):
    return self.inner(h * 2 if isinstance(h, Tensor) else h)


@idiom()
def dtype_asked(self, h):
    return self.inner(h + 1 if h.dtype in {torch.float32} else h)


@idiom()
def in_place(self, h):
    h = self.inner(h)
    h += 1
    h.mul_(0.5)
    return h


@idiom()
def view_written(self, h):
    h = self.inner(h).clone()
    h[:, 0].add_(1)
    h[:, 1] = 0.5
    return h


@idiom()
def masked_fill(self, h):
    h = self.inner(h)
    return h.masked_fill(h < 0, 0.1)


@idiom()
def where_a_number(self, h):
    h = self.inner(h)
    return torch.where(h > 0, h, 0.0)


@idiom()
def made_zeros(self, h):
    total = torch.zeros(WIDTH)
    total += self.inner(h).mean(0)
    return self.inner(h) + total


@idiom()
def made_ramp(self, h):
    return self.inner(h) * torch.arange(WIDTH).to(h.dtype)


@idiom()
def made_of_its_size(self, h):
    return self.inner(h) * torch.ones(h.shape[0], 1) + h.new_full((WIDTH,), 0.1)


@idiom()
def table_of_a_module(self, h):
    return self.inner(h) * TABLE


@idiom()
def cached_table(self, h):
    return self.inner(h) * ramp(WIDTH)


@idiom(kept=dict)
def cache_by_size(self, h):
    if h.shape[0] not in self.kept:
        self.kept[h.shape[0]] = torch.ones(h.shape[0], 1)
    return self.inner(h) * self.kept[h.shape[0]]


@idiom()
def cast_and_back(self, h):
    return self.inner(h).double().mul(0.1).to(h.dtype)


@idiom()
def no_gradients(self, h):
    h = self.inner(h)
    with torch.no_grad():
        weights = torch.softmax(h, -1)
    return h * weights


@idiom()
def gradients_on(self, h):
    h = self.inner(h)
    with torch.enable_grad():
        return h * 2


@idiom()
def autocast_off(self, h):
    h = self.inner(h)
    with torch.autocast("cpu", enabled=False):
        return (h.double() @ torch.eye(WIDTH).double()).to(h.dtype)


@idiom()
def inference_asked(self, h):
    return self.inner(h) * (2 if torch.is_grad_enabled() else 1)


@idiom()
def early_return(self, h):
    h = self.inner(h)
    if not self.training:
        return h
    return h * 2


@idiom()
def returns_its_input(self, h):
    _ = self.inner(h)
    return h * 1.0


@idiom()
def custom_function(self, h):
    return Double.apply(self.inner(h))


@idiom()
def gradient_hook(self, h):
    h = self.inner(h)
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 2)
    return h


@idiom()
def detached(self, h):
    h = self.inner(h)
    return h + (h * 2).detach()


@idiom()
def straight_through(self, h):
    h = self.inner(h)
    return h + (h.round() - h).detach()


@idiom()
def dropped(self, h):
    return F.dropout(self.inner(h), 0.3, self.training)


@idiom()
def noise(self, h):
    h = self.inner(h)
    return h + 0.1 * torch.randn_like(h) if self.training else h


@idiom()
def drawn_by_size(self, h):
    return self.inner(h) * torch.rand(h.shape[0], 1)


@idiom()
def drawn_by_python(self, h):
    return self.inner(h) * (0.5 if random.random() < 0.5 else 2)


@idiom(source=lambda: random.Random(0))
def generator_of_its_own(self, h):
    return self.inner(h) * self.source.random()


@idiom()
def layer_drop(self, h):
    return h if self.training and torch.rand(()) < 0.5 else self.inner(h)


@idiom()
def seeded(self, h):
    torch.manual_seed(3)
    return self.inner(h) + torch.randn(WIDTH)


@idiom(norm=lambda: nn.BatchNorm1d(WIDTH))
def mode_of_a_child(self, h):
    self.norm.eval()
    return self.norm(self.inner(h))


@idiom(norm=lambda: nn.BatchNorm1d(WIDTH))
def batch_norm(self, h):
    return self.norm(self.inner(h))


@idiom()
def shared_layer(self, h):
    return self.inner(torch.relu(self.inner(h)))


@idiom()
def weight_used_again(self, h):
    return F.linear(torch.tanh(self.inner(h)), self.inner.weight.t())


@idiom(more=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))
def parametrized(self, h):
    return self.inner(self.more(h))


@idiom()
def nested(self, h):
    parts = {"a": (h, h * 2), "b": [h]}
    return self.inner(parts["a"][0] + parts["a"][1] + parts["b"][0])


@idiom()
def ordered(self, h):
    parts = OrderedDict(z=h, a=h * 2)
    return self.inner(sum(parts.values()))


@idiom()
def unpacked(self, h):
    first, *rest = self.inner(h).chunk(3, dim=-1)
    return torch.cat([first, *rest], -1)


@idiom()
def exception_caught(self, h):
    try:
        return self.inner(h.view(h.shape[0], 7))
    except RuntimeError:
        return self.inner(h)


@idiom()
def suppressed(self, h):
    with contextlib.suppress(AttributeError):
        h = h * self.not_there
    return self.inner(h)


@idiom()
def data_branch(self, h):
    h = self.inner(h)
    return h * 2 if h.mean() > 0 else h


@idiom()
def to_number(self, h):
    h = self.inner(h)
    return h * h.detach().abs().max().item()


@idiom()
def through_numpy(self, h):
    h = self.inner(h)
    return h * float(h.detach().numpy().std())


@idiom()
def sizes_in_python(self, h):
    return self.inner(h) / math.sqrt(h.size(-1)) * max(h.shape[0], 2)


@idiom()
def einsum(self, h):
    return self.inner(torch.einsum("bi,bj->bj", h, h))


@idiom()
def getattr_by_name(self, h):
    return getattr(self, "inner")(getattr(h, "abs")())  # noqa: B009


@idiom()
def by_keyword(self, h):
    return self.inner(input=h)


@idiom()
def walrus(self, h):
    return big * 2 if (big := self.inner(h)).ndim == 2 else big


@idiom(more=lambda: nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)]))
def reversed_children(self, h):
    for number, layer in enumerate(reversed(self.more)):
        h = h + layer(h) / (number + 1)
    return self.inner(h)


@idiom(more=lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()))
def children_asked(self, h):
    for layer in self.children():
        h = layer(h)
    return h


@idiom(more=lambda: nn.Linear(WIDTH, WIDTH))
def parameters_summed(self, h):
    return self.inner(h) + 0.01 * sum(p.sum() for p in self.more.parameters())


@idiom()
def finally_counted(self, h):
    try:
        return self.inner(h)
    finally:
        GLOBAL["calls"] += 1


@idiom()
def asserted(self, h):
    assert h.shape[1] == WIDTH, h.shape
    return self.inner(h)


@idiom()
def printed_into_a_name(self, h):
    return self.inner(h) * len(f"{tuple(h.shape)}")


@idiom()
def numbers_of_a_tensor(self, h):
    return self.inner(h) * sum(torch.tensor([h.shape[1], 2]).tolist())


@idiom()
def data_of_a_tensor(self, h):
    h = self.inner(h)
    h.data.mul_(2)
    return h * h.data


@idiom()
def compared_with_itself(self, h):
    kept = [h, h * 2]
    return self.inner(kept[0] if any(h is one for one in kept) else h)


@idiom()
def looked_up_by_tensor(self, h):
    return self.inner(h) * {h: 3.0}.get(h, 1.0)


@idiom()
def copied(self, h):
    return self.inner(copy.copy(h)) + copy.deepcopy(h.detach())


@idiom()
def vmapped(self, h):
    return torch.vmap(lambda row: row * 2)(self.inner(h))


@idiom()
def checkpointed(self, h):
    return torch.utils.checkpoint.checkpoint(lambda x: torch.tanh(self.inner(x)), h, use_reentrant=False)


@idiom(hooked=lambda: with_a_hook())
def hook_on_a_child(self, h):
    return self.inner(self.hooked(h))


@idiom(limit=lambda: 3)
def off_after_some_steps(self, h):
    if self.training and self.limit > 0:
        self.limit -= 1
        return self.inner(h) * 2
    return self.inner(h)


@idiom(rate=lambda: 0.1)
def rate_that_grows(self, h):
    self.rate = min(0.5, self.rate + 0.1)
    return F.dropout(self.inner(h), self.rate, self.training)


@idiom(seen=list)
def outputs_collected(self, h):
    self.seen.append(self.inner(h))
    return self.seen[-1] + len(self.seen)


@idiom()
def permuted_rows(self, h):
    return self.inner(h)[torch.randperm(h.shape[0])]


@idiom()
def bernoulli_mask(self, h):
    h = self.inner(h)
    return h * torch.bernoulli(torch.full_like(h, 0.5)) if self.training else h


@idiom()
def attribute_of_a_tensor(self, h):
    h.mark = 2.0
    return self.inner(h) * h.mark


@idiom()
def gradient_scaled(self, h):
    h = self.inner(h)
    return h * 0.1 + (h * 0.9).detach()


@idiom()
def wrapped_in_a_class(self, h):
    return Pair(self.inner(h), 2.0).product()


# --- what the user's loop does between steps, and hooks on a block itself


@idiom(
    temperature=lambda: 0.5, between_steps=lambda self: setattr(self, "temperature", self.temperature * 1.1)
)
def number_moved_by_the_loop(self, h):
    return self.inner(h) * self.temperature


@idiom(residual=lambda: True, between_steps=lambda self: setattr(self, "residual", False))
def switch_turned_by_the_loop(self, h):
    return self.inner(h) + h if self.residual else self.inner(h)


@idiom(between_steps=lambda self: self._forward_hooks or self.register_forward_hook(doubled))
def hook_that_comes_later(self, h):
    return self.inner(h)


@idiom(mark=lambda: torch.zeros(()), between_steps=lambda self: self.mark.add_(1))
def buffer_moved_by_the_loop(self, h):
    return self.inner(h) + self.mark


def shifted(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A pre-hook that moves what goes in."""
    return (args[0] + 1, *args[1:])


@idiom(mark=lambda: 1.0)
def hooks_on_the_block(self, h):
    return self.inner(h) * self.mark


def _hooked(self: nn.Module) -> None:
    Block.__init__(self)
    self.register_forward_pre_hook(shifted)
    self.register_forward_hook(doubled)


IDIOMS["hooks_on_the_block"].__init__ = _hooked  # type: ignore[method-assign]


@idiom()
def autocast_on(self, h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = self.inner(h)
    return out.to(h.dtype)


@idiom(scale=lambda: nn.Parameter(torch.ones(WIDTH)))
def data_assigned(self, h):
    out = self.inner(h) * self.scale
    out.data = out.data * 2
    return out
