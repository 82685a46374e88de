"""The functions and layers of einops in opened code, which runs patterns of its own and keeps what it made of them.

Oracle: a forward hook on a copy of the model, in three steps of two batch sizes, and the model itself in eval mode.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from benchmarks.oracle import Masks, distance, gradients, hook, imposed, leaves

einops = pytest.importorskip("einops")
from einops.layers.torch import EinMix, Rearrange, Reduce  # noqa: E402

Form = Callable[[Any, Tensor], Tensor]
TURNED = functools.partial(einops.rearrange, pattern="b n (h d) -> b h n d", h=2)


def heads(model: Any, h: Tensor) -> Tensor:
    q, k, v = einops.rearrange(model.qkv(h), "b n (three h d) -> three b h n d", three=3, h=2)
    attended = einops.einsum(q, k, "b h i d, b h j d -> b h i j").softmax(-1)
    return einops.rearrange(einops.einsum(attended, v, "b h i j, b h j d -> b h i d"), "b h n d -> b n (h d)")


def with_a_token(model: Any, h: Tensor) -> Tensor:
    token = einops.repeat(model.token, "d -> b d", b=len(h))
    packed, shapes = einops.pack([token, h], "b * d")
    token, h = einops.unpack(packed.tanh(), shapes, "b * d")
    return h + token[:, None]


def several(model: Any, h: Tensor) -> Tensor:
    one, two = (einops.rearrange(t, "... (two d) -> ... two d", two=2) for t in (h, h.tanh()))
    return einops.rearrange([one, two], "k b n two d -> b n (two d) k").mean(-1)


def by_layers(model: Any, h: Tensor) -> Tensor:
    return model.mix(model.back(model.turned(h))) + model.pooled(h)


def by_shape(model: Any, h: Tensor) -> Tensor:
    sizes = einops.parse_shape(h, "b n _")
    pooled = einops.reduce(h, "b (n two) d -> b n d", "max", two=2)
    return einops.repeat(pooled, "b n d -> b (n two) d", two=2) / sizes["n"]


def by_partials(model: Any, h: Tensor) -> Tensor:
    return functools.partial(einops.rearrange, pattern="b h n d -> b n (h d)")(TURNED(h).cumsum(1))


FORMS: dict[str, Form] = {
    f.__name__: f for f in (heads, with_a_token, several, by_layers, by_shape, by_partials)
}


class Model(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.patches = nn.Sequential(Rearrange("b c (n p) -> b n (p c)", p=4), nn.Linear(8, 8))
        self.inner = Inner(form)
        self.head = nn.Sequential(Reduce("b n d -> b d", "mean"), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.patches(x))
        return self.head(einops.rearrange(h, "b n d -> b d n").transpose(1, 2))


class Inner(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first, self.qkv, self.form = nn.Linear(8, 8), nn.Linear(8, 24), form
        self.token = nn.Parameter(torch.ones(8))
        self.turned, self.back = Rearrange("b n d -> b d n"), Rearrange("b d n -> b n d")
        self.mix = EinMix("b n d -> b n e", weight_shape="d e", bias_shape="e", d=8, e=8)
        self.pooled = Reduce("b n d -> b 1 d", "mean")

    def forward(self, h: Tensor) -> Tensor:
        return h + self.form(self, self.first(h))


@pytest.mark.parametrize("at", ["patches", "inner.first"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_hook_would_do(form: str, at: str) -> None:
    torch.manual_seed(0)
    model = Model(FORMS[form])
    aug = ga.rewrite(
        copy.deepcopy(model),
        at,
        rate=0.5,
        stop_grad=True,
        allow_bypass=True,
        example_inputs=torch.randn(4, 2, 16),
    )
    (node,) = aug.augmentations.values()
    for step, rows in enumerate((4, 6, 4)):
        masks, x = Masks(0.5, 0.5, seed=step), torch.randn(rows, 2, 16)
        with hook(model.get_submodule(at), masks, stop_grad=True):
            expected = model(x)
        with imposed(node, masks):
            found = aug(x)
        assert distance(leaves(expected), leaves(found)) < 1e-5
        one, other = gradients(model, expected), gradients(aug, found)
        assert distance(one, other) < 1e-5
        with torch.no_grad():
            for m, grads in ((model, one), (aug, other)):
                for parameter, grad in zip(m.parameters(), grads, strict=True):
                    parameter -= 0.1 * grad
    aug.eval(), model.eval()
    with torch.no_grad(), aug.only_the_graph():
        assert torch.allclose(aug(x), model(x), atol=1e-5)
