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


def whole_size(m, h):
    m.noted = h.shape


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
@pytest.mark.parametrize(
    "note", [size, whole_size, tensor, number, text, flag, new_attribute, buffer, buffer_anew]
)
def test_it_is_set_as_the_model_sets_it(note, at):
    model = Net(note)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, at=at, rate=0.0, stop_grad=True, example_inputs=torch.randn(6, 4))
    for rows in (8, 10):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(aug(x), plain(x))
        assert left(aug) == left(plain)
        assert type(aug.body.noted) is type(plain.body.noted)


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


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor, self.inner = nn.Linear(4, 4), 1.0, nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x) * self.factor)


class Sets(nn.Module):
    """Sets something on its child, and then calls it."""

    def __init__(self, change: Callable[[nn.Module, Tensor], None], behind: bool = False) -> None:
        super().__init__()
        self.stem, self.child, self.head = nn.Linear(4, 4), Scaled(), nn.Linear(4, 2)
        self.change, self.behind = change, behind

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if not self.behind:
            self.change(self.child, h)
        out = self.head(self.child(h))
        if self.behind:
            self.change(self.child, h)
        return out


def by_rows(m, h):
    m.factor = h.shape[0]


def to_a_number(m, h):
    m.factor = 3.0


def by_the_values(m, h):
    m.factor = h.mean()


def of_torch(m, h):
    m.inner.p = 0.25


def that_nobody_reads(m, h):
    m.note = 3


def a_tensor_that_nobody_reads(m, h):
    m.note = h


SETS = [by_rows, to_a_number, by_the_values, of_torch, that_nobody_reads, a_tensor_that_nobody_reads]


@pytest.mark.parametrize("at", ["stem", "head"])
@pytest.mark.parametrize("change", SETS)
def test_what_a_closed_child_reads_is_not_set_in_front_of_its_call(change, at):
    unread = dict.fromkeys((that_nobody_reads, a_tensor_that_nobody_reads), r"child\.note")
    name = {of_torch: r"child\.inner\.p", **unread}.get(change, r"child\.factor")
    with pytest.raises(ga.GraphaugError, match=rf"sets '{name}' and then calls 'child', which may read it"):
        ga.rewrite(Sets(change), at=at, rate=0.0, example_inputs=torch.randn(6, 4))


@pytest.mark.parametrize(("change", "behind"), [(by_rows, False), (to_a_number, False), (to_a_number, True)])
def test_what_an_opened_child_reads_is_what_the_call_has_set(change, behind):
    model = Sets(change, behind)
    plain = copy.deepcopy(model)
    at = (
        "head" if behind else "child.layer"
    )  # behind the call it is kept for the next one, which a graph cannot
    aug = ga.rewrite(model, at=at, rate=0.0, stop_grad=True, example_inputs=torch.randn(6, 4))
    for rows in (8, 10):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(aug(x), plain(x))
        assert aug.child.factor == plain.child.factor
    if behind:  # of a closed module in front of the cut
        assert aug.plan.backward == "dense"
        assert "the assignment to self.factor of 'child'" in aug.plan.reason


def to_what_it_is(m, h):
    m.factor, m.inner.p = 1.0, 0.0


@pytest.mark.parametrize("at", ["stem", "head"])
def test_what_is_set_to_what_it_is_makes_no_difference(at):
    model = Sets(to_what_it_is)
    x = torch.randn(8, 4)
    aug = ga.rewrite(model, at=at, rate=0.0, stop_grad=True, example_inputs=torch.randn(6, 4))
    torch.testing.assert_close(aug(x), model(x))


class Notes(nn.Module):
    """A child that notes in its own forward how much it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), 6

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.shape[0]
        return self.layer(x)


class ReadsNotes(nn.Module):
    def __init__(self, read: Callable[[nn.Module], int]) -> None:
        super().__init__()
        self.stem, self.child, self.head, self.read = nn.Linear(4, 4), Notes(), nn.Linear(4, 2), read

    def forward(self, x: Tensor) -> Tensor:
        h = self.child(self.stem(x))
        return self.head(h * 2 if self.read(self.child) > 6 else h)


READS = {"its name": lambda m: m.seen, "getattr": lambda m: getattr(m, "seen", 0)}


@pytest.mark.parametrize("at", ["stem", "head"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_a_closed_child_notes_when_it_is_called_is_not_read(read, at):
    with pytest.raises(
        ga.GraphaugError, match=r"reads 'child\.seen', which 'child' sets or fills when it is called"
    ):
        ga.rewrite(ReadsNotes(read), at=at, stop_grad=True, example_inputs=torch.randn(6, 4))


class Experts(nn.Module):
    """Keeps a loss of its own for its parent to add, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.aux_loss = nn.Linear(4, 4), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.aux_loss = y.square().mean()
        return y


class AddsTheirLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.child, self.head = nn.Linear(4, 4), Experts(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.child(self.stem(x))) + self.child.aux_loss


@pytest.mark.parametrize("at", ["stem", "head"])
def test_a_tensor_that_a_closed_child_keeps_is_named(at):
    message = (
        r"uses 'child\.aux_loss', a tensor that 'child' keeps when it is called .*let it return that too"
    )
    with pytest.raises(ga.GraphaugError, match=message):
        ga.rewrite(AddsTheirLoss(), at=at, example_inputs=torch.randn(6, 4))


class Remembers(nn.Module):
    """Asks, by code that is not of its class, what it has set in the call before."""

    def __init__(self, read: Callable[[nn.Module], int]) -> None:
        super().__init__()
        self.stem, self.head, self.seen, self.read = nn.Linear(4, 4), nn.Linear(4, 2), 6, read

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.read(self) > 6:
            h = h * 2
        self.seen = x.shape[0]
        return self.head(h)


@pytest.mark.parametrize("at", ["stem", "head"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_asked_by_other_code_before_it_is_set_goes_on_from_call_to_call(read, at):
    with pytest.raises(ga.GraphaugError, match="'seen' from one call to the next"):
        ga.rewrite(Remembers(read), at=at, stop_grad=True, example_inputs=torch.randn(8, 4))


class Resets(Sets):
    """Sets something on its child to what it is, in front of the call or behind it."""

    def __init__(self, behind: bool) -> None:
        super().__init__(to_what_it_is, behind)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("at", ["stem", "head"])
def test_what_would_be_put_back_may_not_be_something_else(at, behind):
    model, x = Resets(behind), torch.randn(8, 4)
    aug = ga.rewrite(model, at=at, rate=0.0, example_inputs=torch.randn(6, 4))
    torch.testing.assert_close(aug(x), copy.deepcopy(model)(x))
    aug.child.factor = 5.0
    with pytest.raises(ga.GraphaugError, match=r"child\.factor == 1\.0, and now it is 5\.0"):
        aug(x)
