"""Functions that opened code calls off a module of the user's, and those that keep their results: each is a node.

Oracle: the model itself, at other sizes than those of the example.
"""

from __future__ import annotations

import copy
import functools
import io
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Model(nn.Module):
    def __init__(self, form: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(8, 8), Block(), nn.Linear(8, 8)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.form(self, self.first(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return self.outer(self.inner(h).relu())


# --- what lies in another file -------------------------------------------------------------------


def branching(h: Tensor) -> Tensor:
    return h.flip(0) if h.shape[0] > 4 else h.tanh()


def to_numbers(h: Tensor) -> Tensor:
    return h * float(len(h)) + sum(range(h.shape[1]))


def several(h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return h.sin(), {"cos": h.cos()}


def through(block: nn.Module, h: Tensor) -> Tensor:
    return block(h) + h


@functools.lru_cache
def half(n: int) -> int:
    return n // 2


@functools.lru_cache
def bucket(n: int) -> int:
    return next(b for b in (4, 8, 16) if n <= b)


def _doubled(n: int) -> int:
    return 2 * n


doubled = functools.lru_cache(_doubled)  # which pickle does not find by its name


@functools.lru_cache(8)
def split(shape: tuple[int, ...], by: int) -> tuple[int, ...]:
    return (shape[0], shape[1] * by, shape[2] // by)


@functools.cache
def table(n: int, device: Any = None) -> Tensor:
    return torch.arange(n, device=device).float()[:, None]


@functools.cache
def drawn(n: int) -> Tensor:
    return torch.randn(n)[:, None]


@functools.cache
def growing(n: int) -> Tensor:
    return torch.zeros(n, 1)


CACHED: Any = (half, bucket, doubled, split, table, drawn, growing)


def turned(h: Tensor) -> Tensor:
    return h.reshape(split(h.shape, 2)).cumsum(1).reshape(h.shape)


helpers: Any = types.ModuleType("helpers")
helpers.ops = types.ModuleType("helpers.ops")
for function in (branching, to_numbers, several, through, turned, *CACHED):
    setattr(helpers, function.__name__, function)
    setattr(helpers.ops, function.__name__, function)

TURNED = functools.partial(turned)


def grown(h: Tensor) -> Tensor:
    kept = growing(h.shape[1])
    kept += 1
    return h + kept


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a branch by the batch": lambda _, h: helpers.branching(h),
    "numbers of sizes": lambda _, h: helpers.to_numbers(h),
    "two modules deep": lambda _, h: helpers.ops.branching(h),
    "several results": lambda _, h: helpers.several(h)[0] + helpers.ops.several(h)[1]["cos"],
    "kept numbers": lambda _, h: h * half(h.shape[0]) + half(len(h)),
    "kept numbers, off a module": lambda _, h: h * helpers.half(h.shape[0]),
    "kept numbers of a branch": lambda _, h: h * bucket(h.shape[0]) + bucket(h.shape[1]),
    "kept under another name": lambda _, h: h * doubled(h.shape[0]) + doubled(n=h.shape[1]),
    "kept by a whole shape": lambda _, h: h.reshape(split(h.shape, 2)).cumsum(1).reshape(h.shape),
    "kept by a shape, in a partial": lambda _, h: TURNED(h),
    "a kept table": lambda _, h: h + table(h.shape[1], h.device) * helpers.ops.table(h.shape[1]),
    "a kept table of the batch": lambda _, h: h + table(h.shape[0])[:, None],
    "a kept draw": lambda _, h: h + drawn(h.shape[1]),
    "a kept tensor that grows": lambda _, h: grown(h),
}
SHAPES = ((4, 4, 8), (6, 4, 8), (4, 6, 8), (5, 2, 8), (4, 4, 8))


def run(model: nn.Module, state: dict[str, Tensor]) -> list[Tensor]:
    """What a model returns call after call, trained in between, from caches that are empty."""
    for cached in CACHED:
        cached.cache_clear()
    model.load_state_dict(state)
    torch.manual_seed(1)
    found = []
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        y = model(x)
        found += [y.detach().clone(), *torch.autograd.grad(y.square().sum(), [*model.parameters()][:2])]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.9
    return found


@pytest.mark.parametrize("before", [False, True], ids=["new", "run before"])
@pytest.mark.parametrize("form", FORMS)
def test_as_the_model_at_every_size(form: str, before: bool) -> None:
    torch.manual_seed(0)
    model, x = Model(FORMS[form]), torch.randn(SHAPES[0])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for cached in CACHED:
        cached.cache_clear()
    if before:
        model(x)
    kept = [cached.cache_info().currsize for cached in CACHED]
    aug = ga.rewrite(model, "first", rate=0.0, allow_bypass=True, example_inputs=x)
    assert [cached.cache_info().currsize for cached in CACHED] in (kept, [0] * len(CACHED))
    if form == "a kept draw":
        aug.eval()  # the augmentation draws as well
    with aug.only_the_graph():
        for ours, its in zip(run(aug, state), run(aug.original, state), strict=True):
            torch.testing.assert_close(ours, its)


@pytest.mark.parametrize("off", ["helpers", "helpers.ops"])
def test_a_function_that_gets_a_module_is_run_through_to_a_site_inside(off: str) -> None:
    torch.manual_seed(0)
    form = {
        "helpers": lambda m, h: helpers.through(m.block, h),
        "helpers.ops": lambda m, h: helpers.ops.through(m.block, h),
    }[off]
    model, x = Model(form), torch.randn(SHAPES[0])
    aug = ga.rewrite(model, "block.inner", rate=0.0, allow_bypass=True, example_inputs=x)
    assert aug.plan.opened == ("block",)
    assert torch.equal(aug(x[:2]), aug.original(x[:2]))


NAMED = {name: form for name, form in FORMS.items() if name.startswith("kept")}


class Kept(Model):
    """One that can be saved: its class can be found, and it holds no lambda."""

    def __init__(self, name: str) -> None:
        super().__init__(torch.clone)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.last(NAMED[self.name](self, self.first(x)))


@pytest.mark.parametrize("name", NAMED)
def test_a_copy_and_one_that_was_loaded_do_the_same(name: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(SHAPES[0]), torch.randn(SHAPES[1])
    aug = ga.rewrite(Kept(name), "first", rate=0.0, allow_bypass=True, example_inputs=x)
    saved = io.BytesIO()
    torch.save(aug, saved)
    saved.seek(0)
    for one in (copy.deepcopy(aug), torch.load(saved, weights_only=False)):
        for given in (x, y):
            assert torch.equal(one(given), aug.original(given))


def test_the_functions_are_put_back() -> None:
    names = vars(helpers).copy()
    ga.rewrite(Model(FORMS["a branch by the batch"]), "first", example_inputs=torch.randn(SHAPES[0]))
    with pytest.raises(ga.GraphaugError):
        ga.rewrite(
            Model(lambda _, h: helpers.branching(h).item()), "first", example_inputs=torch.randn(1, 1, 8)
        )
    assert vars(helpers) == names
