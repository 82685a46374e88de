"""What one closed module keeps for another is a way around the cut between them. Oracle: autograd on the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BypassedSite

FEATURES = 8
TABLE: dict[str, Tensor] = {}
LOCAL = threading.local()


class Context:
    h: Tensor


class Chain(nn.Module):
    """Three closed modules; the last reads what the first keeps."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, nn.Linear(FEATURES, FEATURES), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Keeps(nn.Module):
    """Keeps its result by ``put``, and hands it on."""

    def __init__(self, put: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.linear, self.put = nn.Linear(FEATURES, FEATURES), put
        self.register_buffer("kept", torch.zeros(FEATURES), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        self.put(self, h)
        return h


class Adds(nn.Module):
    """Adds what ``get`` finds."""

    def __init__(self, get: Callable[[], Tensor]) -> None:
        super().__init__()
        self.linear, self.get = nn.Linear(FEATURES, FEATURES), get

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) + self.get()


def of_class() -> Chain:
    def put(_: Any, h: Tensor) -> None:
        Keeps.last = h

    return Chain(Keeps(put), Adds(lambda: Keeps.last))


def stash(h: Tensor | None = None, box: list[Any] = [None]) -> Any:  # noqa: B006  # what is kept there is the case
    if h is not None:
        box[0] = h
    return box[0]


def by(put: Callable[[Any, Tensor], Any], get: Callable[[], Any]) -> Chain:
    return Chain(Keeps(put), Adds(get))


def as_attribute() -> Chain:
    first = Keeps(lambda self, h: setattr(self, "h", h))
    return Chain(first, Adds(lambda: first.h))


def as_buffer() -> Chain:
    first = Keeps(lambda self, h: setattr(self, "kept", h))
    return Chain(first, Adds(lambda: first.kept))


def in_an_object() -> Chain:
    context = Context()
    return by(lambda _, h: setattr(context, "h", h), lambda: context.h)


def on_a_stack() -> Chain:
    stack: list[Tensor] = []
    return by(lambda _, h: stack.append(h), lambda: stack.pop())


def by_hooks() -> Chain:
    """As encoders and decoders are joined from outside."""
    model, found = Chain(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)), {}
    model.first.register_forward_hook(lambda _, __, out: found.__setitem__("h", out))
    model.last.register_forward_hook(lambda _, __, out: out + found["h"])
    return model


def of_a_view() -> Chain:
    """Part of it, in a list of lists."""
    kept: list[list[Tensor]] = [[]]

    def put(_: Any, h: Tensor) -> None:
        kept[0][:] = [h[:, :4], h[:, 4:]]

    return by(put, lambda: torch.cat(kept[0], dim=1))


WAYS: dict[str, Callable[[], Chain]] = {
    "a global table": lambda: by(lambda _, h: TABLE.update(h=h), lambda: TABLE["h"]),
    "an attribute": as_attribute,
    "a buffer": as_buffer,
    "an object": in_an_object,
    "a stack": on_a_stack,
    "hooks": by_hooks,
    "a class": of_class,
    "a default argument": lambda: by(lambda _, h: stash(h), stash),
    "a function": lambda: by(lambda _, h: setattr(stash, "h", h), lambda: stash.h),  # type: ignore[attr-defined]
    "a thread's own": lambda: by(lambda _, h: setattr(LOCAL, "h", h), lambda: LOCAL.h),
    "views in a list": of_a_view,
}


def passed(model: nn.Module, site: str, x: Tensor) -> float:
    """The largest gradient that stopped rows, of which nothing is left at the site, pass to the input."""
    aug = ga.rewrite(model, site, rate=1.0, stop_grad=True, allow_bypass=True, example_inputs=x).train()
    given = x.clone().requires_grad_()
    out = aug(given)
    rows = aug.drawn[site].rows
    assert rows is not None
    (gradient,) = torch.autograd.grad(out[rows].sum(), given, allow_unused=True)
    return 0.0 if gradient is None else gradient[rows].abs().max().item()


@pytest.mark.parametrize("name", WAYS)
def test_what_is_kept_for_a_module_behind_the_cut_passes_around_it(name: str) -> None:
    torch.manual_seed(0)
    model, x = WAYS[name](), torch.randn(6, FEATURES)
    with pytest.raises(BypassedSite, match=r"'last' also receives 'first'. Use 'last'"):
        ga.rewrite(model, "middle", stop_grad=True, example_inputs=x)
    assert passed(model, "middle", x) > 0.1
    assert passed(WAYS[name](), "last", x) == 0


def test_what_is_kept_and_not_read_passes_nowhere() -> None:
    model, x = by(lambda _, h: TABLE.update(h=h), lambda: torch.zeros(())), torch.randn(6, FEATURES)
    assert ga.rewrite(model, "middle", example_inputs=x).plan.sites[0].note.startswith("separates")
    assert passed(model, "middle", x) == 0


def test_what_is_kept_without_a_gradient_is_no_way() -> None:
    model, x = by(lambda _, h: TABLE.update(h=h.detach()), lambda: TABLE["h"]), torch.randn(6, FEATURES)
    assert ga.rewrite(model, "middle", example_inputs=x).plan.sites[0].note.startswith("separates")
    assert passed(model, "middle", x) == 0


class Positions(nn.Module):
    """Makes a table of its parameters alone in its call, which another one adds too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(FEATURES, FEATURES), nn.Parameter(torch.randn(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        self.made = torch.tanh(self.table * 2)
        return self.linear(x) + self.made


def test_a_table_of_parameters_that_is_kept_is_no_way() -> None:
    first, x = Positions(), torch.randn(6, FEATURES)
    model = Chain(first, Adds(lambda: first.made))
    assert ga.rewrite(model, "middle", example_inputs=x).plan.sites[0].note.startswith("separates")
    assert passed(model, "middle", x) == 0


def test_of_token_ids_whatever_is_kept_is_a_way() -> None:
    """An embedding's gradient ends at its weights, and what it gives is of the data all the same."""
    kept: dict[str, Tensor] = {}
    first = nn.Embedding(10, FEATURES)
    first.register_forward_hook(lambda _, __, out: kept.update(h=out))
    with pytest.raises(BypassedSite, match=r"'last' also receives 'first'"):
        ga.rewrite(Chain(first, Adds(lambda: kept["h"])), "middle", example_inputs=torch.randint(10, (6,)))
