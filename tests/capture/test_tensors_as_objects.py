"""What code asks of a tensor beside its numbers and sizes: which are one, what lies on them, of what class they are.

The augmentation changes no value here, so that the model itself is what a training step has to equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError


class Net(nn.Module):
    """Three layers; what is asked is asked by ``asks``, in opened code, or by ``first``, which stays closed."""

    def __init__(self, asks: Callable[..., Tensor], closed: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.asks = Asks(asks) if closed else asks

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        given = (x,) if y is None else (x, y)
        return self.last(self.second(self.first(x) * self.asks(*given)))


class Asks(nn.Module):
    """A closed module around a question."""

    def __init__(self, asks: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = asks

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


class Boxes(Tensor):
    """A class of tensors, as those of torchvision's transforms."""


def whether(condition: bool) -> Tensor:
    return torch.full((), 2.0 if condition else 1.0)


def is_one(x: Tensor, y: Tensor) -> Tensor:
    return whether(x is y)


def counted(x: Tensor, y: Tensor) -> Tensor:
    return torch.full((), float(len({id(t): t for t in (x, y)})))


def in_itself(x: Tensor) -> Tensor:
    return whether(x.contiguous() is x)


def labelled(x: Tensor) -> Tensor:
    return torch.full((), float(getattr(x, "scale", 1.0)))


def has_label(x: Tensor) -> Tensor:
    return whether(hasattr(x, "scale"))


def boxed(x: Tensor) -> Tensor:
    return whether(isinstance(x, Boxes))


def laid(x: Tensor) -> Tensor:
    return whether(x.is_contiguous())


def strided(x: Tensor) -> Tensor:
    return torch.full((), float(x.stride(0)))


def versioned(x: Tensor) -> Tensor:
    return whether(x._version > 0)


def a_view(x: Tensor) -> Tensor:
    return whether(x._base is not None)


X, Y = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
ACROSS = torch.randn(5, 6, 8).transpose(0, 1)


def with_scale(x: Tensor) -> Tensor:
    made = x.clone()
    made.scale = 3.0  # type: ignore[attr-defined]
    return made


QUESTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]] = {
    "is": (is_one, [(X, Y), (X, X)]),
    "id": (counted, [(X, Y), (X, X)]),
    "contiguous": (in_itself, [(X,), (ACROSS,)]),
    "getattr": (labelled, [(X,), (with_scale(X),)]),
    "hasattr": (has_label, [(X,), (with_scale(X),)]),
    "class": (boxed, [(X,), (X.as_subclass(Boxes),)]),
    "layout": (laid, [(X,), (ACROSS,)]),
    "stride": (strided, [(X,), (ACROSS,)]),
    "version": (versioned, [(X,), (X.clone().add_(1),)]),
    "base": (a_view, [(X,), (torch.randn(8, 5, 8)[1:7],)]),
}


def silent(
    model: nn.Module, example: tuple[Tensor, ...], calls: list[tuple[Tensor, ...]], **options: Any
) -> list[int]:
    """The calls whose result is another one than the model's, without an error; none where the rewrite is refused."""
    plain = copy.deepcopy(model).train()
    try:
        aug = ga.rewrite(
            copy.deepcopy(model), "second", transform=lambda h: h * 1.0, example_inputs=example, **options
        )
    except ga.GraphaugError:
        return []
    wrong = []
    for number, call in enumerate(calls):
        try:
            found = aug.train()(*call)
        except ga.GraphaugError:
            continue
        if not torch.allclose(found, plain(*call), atol=1e-5):
            wrong.append(number)
    return wrong


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.parametrize("closed", [False, True], ids=["opened", "closed"])
@pytest.mark.parametrize("which", [0, 1], ids=["of one kind", "of the other"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_no_answer_is_held_that_another_call_has_not(
    question: str, which: int, closed: bool, backward: str
) -> None:
    asks, calls = QUESTIONS[question]
    options: dict[str, Any] = {"backward": "dense"} if backward == "dense" else {"stop_grad": True}
    assert silent(Net(asks, closed), calls[which], calls, **options) == []


@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_inputs_that_are_one_tensor_are_one_in_the_graph(backward: str) -> None:
    """Also of tap, of verify's own calls, and of what is exported."""
    model = Net(is_one)
    aug = ga.rewrite(model, "second", rate=0.0, backward=backward, stop_grad=True, example_inputs=(X, X))  # type: ignore[arg-type]
    torch.testing.assert_close(aug.train()(X, X), model(X, X))
    ga.verify(aug, (X, X))
    with pytest.raises(AssumptionViolated, match="y is x"):
        aug(X, Y)
    torch.testing.assert_close(aug.eval()(X, Y), model.eval()(X, Y))
    taps = ga.tap(model, at=["last"], example_inputs=(X, X))
    torch.testing.assert_close(next(iter(taps(X, X).values())), model(X, X))


class OfADict(nn.Module):
    """Compares entries of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 5)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        h = self.second(self.first(given["x"]))
        return h * 7.0 if given["x"] is given["y"] else h  # type: ignore[no-any-return]


def test_entries_of_an_input_that_are_compared_are_asked_of_the_callers() -> None:
    model, x = OfADict(), torch.randn(6, 5)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=({"x": x, "y": x.clone()},))
    torch.testing.assert_close(aug.train()({"x": x, "y": x + 1}), model({"x": x, "y": x + 1}))
    with pytest.raises(AssumptionViolated, match=r"d?\['y'\] is given\['x'\]"):
        aug({"x": x, "y": x})


class Labelled(nn.Module):
    """Makes a dict by its name, which may be of tensors, and asks nothing of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        options = dict(scale=2.0)  # noqa: C408
        y = self.second(self.first(x) * options["scale"])
        return y if target is None else nn.functional.mse_loss(y, target)


@pytest.mark.parametrize("stop_grad", [False, True])
def test_one_example_for_two_inputs_binds_nothing_that_is_not_asked(stop_grad: bool) -> None:
    """As ``labels=input_ids``, where code that could ask for it has a ``dict`` or ``set`` somewhere."""
    model, x = Labelled(), torch.randn(6, 5)
    aug = ga.rewrite(model, "first", rate=0.0, stop_grad=stop_grad, example_inputs={"x": x, "target": x})
    assert aug.plan.assumptions == ()
    for target in (x, torch.randn(6, 5)):
        torch.testing.assert_close(aug.train()(x, target), model(x, target))


def test_a_question_about_others_than_tensors_is_none() -> None:
    """Classes, members of an enumeration and constants are compared by ``is`` everywhere."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.a(x) + y
            if type(self.a) is nn.Linear and self.kind is nn.Linear and type(x) is type(y) and x is not None:
                h = h * 2
            return self.b(h)

    x, y = torch.randn(4, 4), torch.randn(4, 4)
    model = Plain()
    aug = ga.rewrite(model, "b", rate=0.0, allow_bypass=True, example_inputs=(x, y))
    assert not any("tensors given == 'y is x'" in str(a) for a in aug.plan.assumptions)
    torch.testing.assert_close(aug.train()(x, x), model(x, x))


class Last(nn.Module):
    """Compares modules, and has names that tensors have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.drop, self.id, self._base = nn.Dropout(0.0), 3, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self._base(x)
        for layer in self.layers:
            h = layer(h)
            if layer is not self.layers[-1] and self.id:
                h = torch.relu(h).float().contiguous()
        return self.drop(h)


@pytest.mark.parametrize("at", ["layers.1", "layers.2", "drop"])
def test_modules_may_be_compared_by_what_they_are(at: str) -> None:
    x = torch.randn(4, 4)
    model = Last()
    aug = ga.rewrite(model, at, rate=0.0, stop_grad=True, backward="proved", example_inputs=x).train()
    assert not aug.plan.assumptions
    torch.testing.assert_close(aug(x), model(x))


class Attends(nn.Module):
    """Attention to itself and to others, told apart by what it is given, as that of torch is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key is value:
            return query * 2 if query is key else query + key
        return query

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.a(x), self.b(x)
        return self.c(self.attend(h, h, h) + self.attend(h, g, g) + self.attend(h, g, x))


def test_activations_that_cannot_be_one_may_be_compared() -> None:
    x = torch.randn(4, 4)
    model = Attends()
    aug = ga.rewrite(model, "c", rate=0.0, example_inputs=x).train()
    assert not aug.plan.assumptions
    for batch in (x, torch.randn(6, 4)):
        torch.testing.assert_close(aug(batch), model(batch))


def test_a_dict_by_tensors_is_a_question_about_them() -> None:
    class ByTensor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            names = {x: 1.0, y: 2.0}
            return self.b(self.a(x) * len(names))

    x, y = torch.randn(4, 4), torch.randn(4, 4)
    model = ByTensor()
    aug = ga.rewrite(model, "b", rate=0.0, example_inputs=(x, y)).train()
    torch.testing.assert_close(aug(x, y), model(x, y))
    with pytest.raises(AssumptionViolated, match="y is x"):
        aug(x, x)


def test_a_closed_module_that_returns_a_tensor_twice_is_refused_where_code_asks() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Compares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.twice, self.b = nn.Linear(4, 4), Twice(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h, g = self.twice(self.a(x))
            return self.b(h * 2 if h is g else h)

    with pytest.raises(CaptureError, match="it asks whether two tensors are one"):
        ga.rewrite(Compares(), "b", example_inputs=torch.randn(4, 4))


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "grad": lambda x: whether(x.grad is None),
    "_version": lambda x: whether(x._version > 0),
    "_base": lambda x: whether(x._base is None),
    "_backward_hooks": lambda x: whether(not x._backward_hooks),
}


@pytest.mark.parametrize("name", OF_ONE)
def test_what_is_of_one_tensor_in_one_call_is_refused(name: str) -> None:
    with pytest.raises(CaptureError, match=rf"it reads x\.{name}, which may be another in each call"):
        ga.rewrite(Net(OF_ONE[name]), "second", example_inputs=X)


def test_a_gradient_that_a_weight_has_is_no_fact() -> None:
    model = Net(lambda x: torch.ones(()))
    model.asks = lambda x: whether(model.first.weight.grad is None)
    with pytest.raises(CaptureError, match=r"it reads first\.weight\.grad, which may be another"):
        ga.rewrite(model, "second", example_inputs=X)
