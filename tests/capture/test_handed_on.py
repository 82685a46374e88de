"""Operations that give back what they are given on the example, and a copy of it in another call: ``h.float()``.

Oracle: the model, called with tensors of another type or layout, under autocast, and converted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BypassedSite

CONVERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda h: h.float(),
    "to": lambda h: h.to(torch.float32),
    "to by name": lambda h: h.to(dtype=torch.float32),
    "type": lambda h: h.type(torch.float32),
    "as_tensor": lambda h: torch.as_tensor(h, dtype=torch.float32),
    "real": lambda h: torch.real(h).float(),
    "cpu": lambda h: h.cpu().float(),
    "contiguous": lambda h: h.contiguous().float(),
    "norm in full precision": lambda h: h.float().norm(dim=-1, keepdim=True),
}


class Net(nn.Module):
    """Uses a value after something was made of it in full precision."""

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.convert = convert

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.a(x)
        made = self.convert(h)
        return self.h(self.b(h)), h, made.sum(-1)


def rewritten(model: nn.Module, x: Tensor) -> nn.Module:
    return ga.rewrite(model, "b", transform=lambda h: h * 1.0, example_inputs=x, allow_bypass=True).train()


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "double"])
def test_what_is_made_in_another_type_does_not_take_the_place_of_the_value(name: str, how: str) -> None:
    x = torch.randn(6, 8)
    model = Net(CONVERSIONS[name])
    plain, aug = copy.deepcopy(model), rewritten(model, x)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found, wanted = aug(x), plain(x)
    else:
        kind = torch.bfloat16 if how == "bfloat16" else torch.float64
        found, wanted = aug.to(kind)(x.to(kind)), plain.to(kind)(x.to(kind))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("place", ["parameter", "buffer"])
def test_a_tensor_of_the_model_is_used_as_it_is_behind_a_conversion_of_it(place: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
            if place == "parameter":
                self.scale = nn.Parameter(torch.rand(8))
            else:
                self.register_buffer("scale", torch.rand(8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weight = self.scale.float().softmax(-1)
            return self.b(self.a(x) * weight.to(x.dtype)), self.scale * 2

    x = torch.randn(6, 8)
    model = Scaled()
    plain = copy.deepcopy(model).bfloat16()
    aug = (
        ga.rewrite(model, "a", transform=lambda h: h * 1.0, example_inputs=x, allow_bypass=True)
        .bfloat16()
        .train()
    )
    for a, b in zip(aug(x.bfloat16()), plain(x.bfloat16()), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


class InPlace(nn.Module):
    """Writes into what may be the batch, and then uses the batch."""

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.h, self.convert = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), convert

    def forward(self, x: Tensor) -> Tensor:
        z = self.convert(x)
        z -= 0.5
        return self.h(self.b(self.a(z) + self.a(x.float())))


ACROSS = torch.randn(8, 6).t()
WRITTEN = {
    "contiguous, then not": (lambda x: x.contiguous(), torch.randn(6, 8), ACROSS),
    "not, then contiguous": (lambda x: x.contiguous(), ACROSS, torch.randn(6, 8)),
    "a copy, then the batch": (lambda x: x.to(torch.float32), torch.randn(6, 8).double(), torch.randn(6, 8)),
    "the batch, then a copy": (lambda x: x.to(torch.float32), torch.randn(6, 8), torch.randn(6, 8).double()),
}


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_into_may_be_the_batch_in_another_call(name: str, stop_grad: bool) -> None:
    """The batch is left as the model leaves it, by a sparse step too."""
    convert, example, batch = WRITTEN[name]
    model = InPlace(convert)
    plain = copy.deepcopy(model).train()
    aug = ga.rewrite(
        model, "b", transform=lambda h: h * 1.0, stop_grad=stop_grad, example_inputs=example.clone()
    )
    for given in (example, batch):
        mine, own = (given.clone(memory_format=torch.preserve_format) for _ in range(2))
        torch.testing.assert_close(aug.train()(mine), plain(own))
        assert torch.equal(mine, own)


class AtConversion(nn.Module):
    """A site that is a copy on the example, and in another call what is read beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = h.to(torch.float32)
        y += 1
        return self.b((y + h.float()).to(x.dtype))


def test_a_site_that_may_be_what_is_read_beside_it_is_not_written_into() -> None:
    model, x = AtConversion().bfloat16(), torch.randn(4, 8).bfloat16()
    with pytest.raises(BypassedSite, match="write out of place"):
        ga.rewrite(model, "to", allow_bypass=True, example_inputs=x)
