"""What a child's own method sets, where a forward enters the child by that method."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Body(nn.Module):
    """Does something to itself in a method that is no forward."""

    def __init__(self, note: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.first, self.second, self.note = nn.Linear(4, 4), nn.Linear(4, 4), note
        self.noted, self.table, self.rows, self.calls = None, {}, [], 0
        self.register_buffer("seen", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.note(self, h)
        return self.second(h)


class Net(nn.Module):
    def __init__(self, note: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.body, self.head = Body(note), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body.features(x))


def size(m, h):
    m.noted = h.shape[0]


def tensor(m, h):
    m.noted = h.detach().abs()


def number(m, h):
    m.noted = 0.5


def text(m, h):
    m.noted = "seen"


def flag(m, h):
    m.noted = True


def new_attribute(m, h):
    m.width = h.shape[1]


def buffer(m, h):
    m.seen += 1


def buffer_anew(m, h):
    m.seen = m.seen + h.shape[0]


def count(m, h):
    m.calls += 1


def count_from_nothing(m, h):
    m.steps = getattr(m, "steps", 0) + 1


def entry(m, h):
    m.table["rows"] = h.shape[0]


def appended(m, h):
    m.rows.append(h.shape[0])


def left(model: Net) -> dict[str, object]:
    """What calls leave in the body, as values that compare."""
    held = {**vars(model.body), **model.body._buffers}
    names = ("noted", "table", "rows", "calls", "seen", "width", "steps")
    values = {name: held[name] for name in names if name in held}
    return {name: v.tolist() if isinstance(v, Tensor) else v for name, v in values.items()}


@pytest.mark.parametrize("at", ["body.second", "head"])
@pytest.mark.parametrize("note", [size, tensor, number, text, flag, new_attribute, buffer, buffer_anew])
def test_it_is_set_as_the_model_sets_it(note, at):
    model = Net(note)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, at=at, rate=0.0, stop_grad=True, example_inputs=torch.randn(6, 4))
    for rows in (8, 10):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(aug(x), plain(x))
        assert left(aug) == left(plain)


@pytest.mark.parametrize("at", ["body.second", "head"])
@pytest.mark.parametrize(
    ("note", "name"),
    [(count, "calls"), (count_from_nothing, "steps"), (entry, "table"), (appended, "rows")],
)
def test_what_goes_on_from_call_to_call_is_refused(note, name, at):
    model = Net(note)
    before = left(model)
    with pytest.raises(ga.GraphaugError, match=rf"'body\.{name}'.*register_buffer"):
        ga.rewrite(model, at=at, stop_grad=True, example_inputs=torch.randn(6, 4))
    assert left(model) == before
