"""More idioms of forwards: what lies beside the modules, what the user's loop moves, and what code does to children."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
import tempfile
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forwards import GLOBAL, WIDTH, idiom
from torch import Tensor, nn
from torch.nn import functional as F

ENVIRONMENT = "IDIOMS_OF_FORWARDS"
FILE = Path(tempfile.mkdtemp()) / ENVIRONMENT
FLAG = {"on": False}
MOVED = {"number": 2.0}
TABLE: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def fresh() -> None:
    """What lies beside the modules, as it is at the start."""
    os.environ.pop(ENVIRONMENT, None)
    sys.modules.pop(ENVIRONMENT, None)
    vars(torch).pop(ENVIRONMENT, None)
    FILE.unlink(missing_ok=True)
    FLAG["on"] = False
    MOVED["number"] = 2.0
    TABLE.clear()
    globals()["patched"] = doubled
    np.random.seed(0)  # noqa: NPY002 - the generator that forwards draw from


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def two() -> nn.ModuleList:
    return nn.ModuleList(linear() for _ in range(2))


def doubled(h: Tensor) -> Tensor:
    return h * 2


patched = doubled


@contextlib.contextmanager
def flagged() -> Any:
    FLAG["on"] = True
    try:
        yield 3.0
    finally:
        FLAG["on"] = False


class ReadsTheFlag(nn.Module):
    """A layer that does something else inside of `flagged`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h) * (2 if FLAG["on"] else 1)


@dataclasses.dataclass
class Out:
    value: Tensor
    number: float = 2.0


Named = collections.namedtuple("Named", "value number")


class Sub(torch.Tensor):
    """A tensor of the user's own type."""


class Scale:
    """Something callable that holds a list."""

    def __init__(self) -> None:
        self.numbers = [1.0]

    def __call__(self, h: Tensor) -> Tensor:
        return h * self.numbers[0]


def to_be_scripted(h: torch.Tensor) -> torch.Tensor:
    return torch.relu(h) * 2


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and in many people's code
    scripted_function = torch.jit.script(to_be_scripted)


def counting() -> Any:
    number = 0

    def step(h: Tensor) -> Tensor:
        nonlocal number
        number += 1
        return h * number

    return step


def over_a_box() -> Any:
    box = [1.0]
    return (lambda h: h * box[0]), box


def replace_entry(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def deep(h: Tensor, n: int) -> Tensor:
    return h if n == 0 else deep(h * 0.9 + 0.1, n - 1)


# --- plain Python ----------------------------------------------------------------------------------


@idiom()
def own_context(self, h):
    with flagged() as number:
        h = self.inner(h) * (2 if FLAG["on"] else 1)
    return h * number


@idiom(more=two)
def generator_function(self, h):
    def run(h):
        for layer in self.more:
            h = layer(h)
            yield h

    return self.inner(sum(run(h)))


@idiom()
def recursion(self, h):
    return deep(self.inner(h), 3)


@idiom(step=counting)
def nonlocal_counter(self, h):
    return self.step(self.inner(h))


@idiom()
def through_a_dataclass(self, h):
    out = dataclasses.replace(Out(self.inner(h)), number=3.0)
    return out.value * out.number


@idiom()
def through_a_namedtuple(self, h):
    out = Named(self.inner(h), 2)._replace(number=4)
    return out.value * out.number


@idiom()
def matched(self, h):
    match h.dim():
        case 2:
            return self.inner(h)
        case _:
            return h


@idiom()
def weak_table(self, h):
    TABLE[self] = TABLE.get(self, 0) + 1
    return self.inner(h) * TABLE[self]


@idiom()
def module_in_a_local(self, h):
    return nn.LayerNorm(WIDTH)(self.inner(h))


@idiom(others=lambda: [linear()])
def module_in_a_list(self, h):
    return self.inner(h) + self.others[0](h)


# --- tensors ---------------------------------------------------------------------------------------


@idiom()
def subclass_of_tensor(self, h):
    return self.inner(h).as_subclass(Sub).mul(2).as_subclass(torch.Tensor)


@idiom()
def gradient_in_the_forward(self, h):
    with torch.enable_grad():
        x = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
    return self.inner(h) + gradient


@idiom()
def scripted(self, h):
    return scripted_function(self.inner(h))


@idiom()
def always_dropped(self, h):
    return F.dropout(self.inner(h), 0.5, training=True)


@idiom()
def random_branch(self, h):
    h = self.inner(h)
    return h * 2 if torch.rand(1).item() > 0.5 else h


@idiom()
def numpy_noise(self, h):
    return self.inner(h) + torch.from_numpy(np.random.randn(WIDTH)).to(h.dtype)  # noqa: NPY002


@idiom()
def boolean_write(self, h):
    h = self.inner(h).clone()
    h[h > 0] = 0.5
    return h


@idiom()
def augmented_assignment(self, h):
    h = self.inner(h)
    h += 1
    h *= 2
    return h


@idiom()
def loop_over_rows(self, h):
    return torch.stack([row * 2 for row in self.inner(h)])


@idiom()
def unbound(self, h):
    first, *rest = self.inner(h).unbind(1)
    return torch.stack([first, *rest], 1)


@idiom()
def fourier(self, h):
    return torch.fft.irfft(torch.fft.rfft(self.inner(h)), n=WIDTH)


@idiom()
def sparse_product(self, h):
    return torch.sparse.mm(torch.eye(WIDTH).to_sparse(), self.inner(h).t()).t()


@idiom()
def mean_of_some(self, h):
    h = self.inner(h)
    return h - h[h > 0].mean()


@idiom(more=two)
def routed(self, h):
    h = self.inner(h)
    return self.more[int(h.sum() > 0)](h)


@idiom(more=two)
def routed_rows(self, h):
    h = self.inner(h)
    out, which = torch.zeros_like(h), h.argmax(1) % 2
    for i, layer in enumerate(self.more):
        rows = torch.where(which == i)[0]
        out[rows] = layer(h[rows])
    return out


@idiom()
def unique_values(self, h):
    h = self.inner(h)
    values, places = torch.unique(h.detach().round(), return_inverse=True)
    return h + values[places]


@idiom()
def slices_assigned(self, h):
    out, y = torch.empty_like(h), self.inner(h)
    out[:, :3] = y[:, 3:]
    out[:, 3:] = y[:, :3]
    return out


@idiom()
def even_rows(self, h):
    h = self.inner(h)
    return torch.cat([h[: len(h) // 2 * 2], h[len(h) // 2 * 2 :]])


@idiom()
def halves_exchanged(self, h):
    first, second = self.inner(h).chunk(2)
    return torch.cat([second, first])


@idiom()
def complex_numbers(self, h):
    h = torch.view_as_complex(self.inner(h).reshape(-1, 3, 2)) * 1j
    return torch.view_as_real(h).reshape(-1, WIDTH)


@idiom()
def default_dtype(self, h):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        zero = torch.zeros(1)
    finally:
        torch.set_default_dtype(before)
    return self.inner(h) + zero.to(h.dtype)


@idiom()
def device_context(self, h):
    with torch.device("cpu"):
        return self.inner(h) + torch.ones(WIDTH)


@idiom()
def number_kept_by_the_backward(self, h):
    h = self.inner(h)

    def hook(gradient):
        self.norm = float(gradient.norm())
        return gradient * 2

    if h.requires_grad:
        h.register_hook(hook)
    return h


# --- state -----------------------------------------------------------------------------------------


@idiom()
def lazy_buffer(self, h):
    if not hasattr(self, "table"):
        self.register_buffer("table", torch.linspace(0, 1, WIDTH))
    return self.inner(h) + self.table


@idiom(teacher=linear)
def momentum_teacher(self, h):
    with torch.no_grad():
        for mine, theirs in zip(self.teacher.parameters(), self.inner.parameters(), strict=True):
            mine.mul_(0.9).add_(theirs, alpha=0.1)
        target = self.teacher(h)
    return self.inner(h) - target


@idiom(queue=lambda: torch.zeros(8, WIDTH), pointer=lambda: torch.zeros(1, dtype=torch.long))
def memory_bank(self, h):
    h, place = self.inner(h), int(self.pointer)
    self.queue[place : place + 1] = h.detach()[:1]
    self.pointer[0] = (place + 1) % 8
    return h + self.queue.mean(0)


@idiom(generator=lambda: torch.Generator().manual_seed(3))
def torch_generator(self, h):
    return self.inner(h) + torch.randn(WIDTH, generator=self.generator)


@idiom(total=lambda: 0.0)
def number_kept(self, h):
    h = self.inner(h)
    self.total = 0.9 * self.total + 0.1 * h.detach().abs().mean().item()
    return h / (1 + self.total)


@idiom(scale=lambda: nn.Parameter(torch.ones(())))
def parameter_as_a_number(self, h):
    return self.inner(h) * self.scale.item()


@idiom(steps=lambda: torch.zeros((), dtype=torch.long))
def buffer_decides(self, h):
    self.steps += 1
    h = self.inner(h)
    return h * 2 if self.steps > 3 else h


@idiom(layer=lambda: nn.utils.spectral_norm(linear()))
def spectral_norm_by_a_hook(self, h):
    return F.linear(self.layer(self.inner(h)), self.layer.weight)


@idiom(layer=lambda: nn.utils.parametrizations.spectral_norm(linear()))
def spectral_norm_read(self, h):
    return F.linear(self.inner(h), self.layer.weight)


@idiom(layer=lambda: nn.utils.parametrizations.weight_norm(linear()))
def parametrization_cached(self, h):
    with nn.utils.parametrize.cached():
        return self.layer(self.layer(self.inner(h)))


# --- what code does to children --------------------------------------------------------------------


@idiom(more=ReadsTheFlag)
def context_that_a_child_reads(self, h):
    h = self.inner(h)
    with flagged():
        return self.more(h)


@idiom(more=linear)
def weights_exchanged(self, h):
    weights = {name: p * 2 for name, p in self.more.named_parameters()}
    return torch.func.functional_call(self.more, weights, (self.inner(h),))


@idiom(drop=lambda: nn.Dropout(0.5))
def number_of_a_child_set(self, h):
    self.drop.p = 0.1
    return self.drop(self.inner(h))


@idiom(norm=lambda: nn.BatchNorm1d(WIDTH))
def momentum_of_a_child_set(self, h):
    self.norm.momentum = 0.5 if self.training else 0.1
    return self.norm(self.inner(h))


@idiom(norm=lambda: nn.BatchNorm1d(WIDTH))
def statistics_of_a_child_written(self, h):
    norm = self.norm
    return F.batch_norm(self.inner(h), norm.running_mean, norm.running_var, training=self.training)


@idiom(more=linear)
def weight_of_a_child_exchanged(self, h):
    before = self.more.weight.data
    self.more.weight.data = before * 2
    h = self.more(self.inner(h))
    self.more.weight.data = before
    return h


@idiom(more=linear)
def gradient_of_a_child_off(self, h):
    for p in self.more.parameters():
        p.requires_grad_(False)
    h = self.more(self.inner(h))
    for p in self.more.parameters():
        p.requires_grad_(True)
    return h


# --- what the user's loop moves --------------------------------------------------------------------


@idiom(between_steps=lambda self: os.environ.__setitem__(ENVIRONMENT, "1"))
def environment_changed(self, h):
    return self.inner(h) * (2 if os.environ.get("IDIOMS_OF_FORWARDS") else 3)


@idiom(between_steps=lambda self: FILE.write_text("here"))
def file_put_there(self, h):
    return self.inner(h) * (2 if FILE.exists() else 3)


@idiom(between_steps=lambda self: sys.modules.__setitem__(ENVIRONMENT, types.ModuleType(ENVIRONMENT)))
def module_asked_for(self, h):
    return self.inner(h) * (2 if "IDIOMS_OF_FORWARDS" in sys.modules else 3)


@idiom(between_steps=lambda self: setattr(torch, ENVIRONMENT, 1.5))
def number_put_on_torch(self, h):
    return self.inner(h) * getattr(torch, "IDIOMS_OF_FORWARDS", 1.0)


@idiom(between_steps=lambda self: setattr(self, "scale_of_the_loop", 1.5), width=lambda: 2)
def number_put_on_the_block(self, h):
    return self.inner(h) * sum(v for k, v in vars(self).items() if k in ("scale_of_the_loop", "width"))


@idiom(between_steps=lambda self: self.scale.__iadd__(0.5), scale=lambda: np.array([1.5]))
def array_moved(self, h):
    return self.inner(h) * float(self.scale[0])


@idiom(between_steps=lambda self: replace_entry(self.options, "p", 1.5), options=lambda: {"p": 1.0})
def entry_of_a_dict_moved(self, h):
    return self.inner(h) * self.options["p"]


@idiom(
    between_steps=lambda self: replace_entry(self.options["deep"], "p", 1.5),
    options=lambda: {"deep": {"p": 1.0}},
)
def entry_deep_in_a_dict_moved(self, h):
    return self.inner(h) * self.options["deep"]["p"]


@idiom(
    between_steps=lambda self: setattr(self.options, "p", 1.5), options=lambda: types.SimpleNamespace(p=1.0)
)
def namespace_moved(self, h):
    return self.inner(h) * self.options.p


@idiom(between_steps=lambda self: replace_entry(self.scale.numbers, 0, 1.5), scale=Scale)
def callable_moved(self, h):
    return self.scale(self.inner(h))


@idiom(between_steps=lambda self: self.steps.append(doubled), steps=list)
def function_added(self, h):
    h = self.inner(h)
    for step in self.steps:
        h = step(h)
    return h


@idiom(between_steps=lambda self: setattr(self, "act", torch.tanh), act=lambda: torch.relu)
def function_replaced(self, h):
    return self.act(self.inner(h))


@idiom(between_steps=lambda self: setattr(self, "act", nn.Tanh()), act=nn.ReLU)
def child_replaced(self, h):
    return self.act(self.inner(h))


@idiom(between_steps=lambda self: globals().__setitem__("patched", torch.sin))
def global_function_patched(self, h):
    return patched(self.inner(h))


@idiom(between_steps=lambda self: replace_entry(MOVED, "number", 3.0))
def global_moved(self, h):
    return self.inner(h) * MOVED["number"]


@idiom(between_steps=lambda self: replace_entry(GLOBAL, "scale", 0.7))
def global_of_another_module_moved(self, h):
    return self.inner(h) * GLOBAL["scale"]


@idiom(between_steps=lambda self: replace_entry(self.pair[1], 0, 3.0), pair=over_a_box)
def closure_moved(self, h):
    return self.pair[0](self.inner(h))


@idiom(between_steps=lambda self: setattr(type(self), "factor", 2.5))
def class_attribute_moved(self, h):
    return self.inner(h) * self.factor


@idiom(between_steps=lambda self: setattr(self, "factor", 2.5))
def class_attribute_shadowed(self, h):
    return self.inner(h) * self.factor


@idiom(between_steps=lambda self: vars(self).__setitem__("forward", lambda h: self.inner(h) * 7))
def forward_replaced(self, h):
    return self.inner(h)


@idiom(between_steps=lambda self: setattr(self.drop, "p", 0.3), drop=lambda: nn.Dropout(0.1))
def number_of_a_child_moved(self, h):
    return F.dropout(self.inner(h), self.drop.p, self.training)


@idiom(between_steps=lambda self: self.drop.eval(), drop=lambda: nn.Dropout(0.3))
def mode_of_a_child_moved(self, h):
    return F.dropout(self.inner(h), self.drop.p, self.drop.training)


@idiom(
    between_steps=lambda self: setattr(self, "kind", "tanh"),
    acts=lambda: nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()}),
    kind=lambda: "relu",
)
def kind_of_child_moved(self, h):
    return self.acts[self.kind](self.inner(h))
