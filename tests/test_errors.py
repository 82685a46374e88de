"""What every message shares: articles, and calls that do not fit a signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import graphaug as ga
import graphaug.analysis
import graphaug.errors
from graphaug.errors import GraphaugError, InvalidOption, SelectorError, an, nearest


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))


def of_class(name: str) -> object:
    return type(name, (), {})()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int", "an int"),
        ("OrderedDict", "an OrderedDict"),
        ("Linear", "a Linear"),
        ("ReLU", "a ReLU"),
        ("LSTM", "an LSTM"),
        ("MLP", "an MLP"),
        ("UNet", "a UNet"),
        ("UniFormer", "a UniFormer"),
        ("ViT", "a ViT"),
        ("_Inner", "an _Inner"),
    ],
)
def test_a_class_has_the_article_that_is_heard(name: str, said: str) -> None:
    assert an(of_class(name)) == said
    assert an(type(of_class(name))) == said


def test_none_is_said_as_it_is_written() -> None:
    assert an(None) == "None"


@pytest.mark.parametrize(
    ("wrong", "known", "near"),
    [
        ("foo", ["lr_floor", "rate", "at"], []),  # "lr_floor" has all its letters
        ("epoch", ["keep", "epochs", "seed"], ["epochs"]),
        ("ResNet81", ["resnet18", "vit_b_16"], ["resnet18"]),
        ("at", ["at"], []),  # what is written so is not what was meant
    ],
)
def test_names_that_are_far_are_not_suggested(wrong: str, known: list[str], near: list[str]) -> None:
    assert nearest(wrong, known) == near


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a near name": (
        lambda: ga.rewrite(net(), "1", stopgrad=True),
        "rewrite has no option 'stopgrad'. Did you mean 'stop_grad'",
    ),
    "no near name": (lambda: ga.rewrite(net(), "1", qqq=1), "rewrite has no option 'qqq'. It has: model, at, rate, "),
    "no site": (lambda: ga.rewrite(net()), "rewrite needs at=: graphaug.sites(model) lists what it can name; "),
    "dropout's own name": (lambda: ga.rewrite(net(), "1", p=0.5), "rewrite has no option 'p'. Did you mean 'rate'?"),
    "a layer": (lambda: ga.rewrite(net(), layer="1"), "rewrite has no option 'layer'. Did you mean 'at'?"),
    "inputs": (
        lambda: ga.rewrite(net(), "1", inputs=1),
        "rewrite has no option 'inputs'. Did you mean 'example_inputs'?",
    ),
    "by position": (
        lambda: ga.rewrite(net(), "1", 0.3),
        "rewrite takes only model, at by position, and 3 were given. Give the others by name: rate=…",
    ),
    "twice": (lambda: ga.rewrite(net(), "1", at="0"), "rewrite is given 'at' twice"),
    "of a class": (lambda: ga.DeepAugment(rat=0.5), "DeepAugment has no option 'rat'. Did you mean 'rate'?"),
    "of a transform": (lambda: ga.Noise(sgma=0.5), "Noise has no option 'sgma'. Did you mean 'sigma'?"),
    "of its site": (lambda: ga.Noise(stopgrad=True), "Noise has no option 'stopgrad'. Did you mean 'stop_grad'?"),
    "of a transform by position": (lambda: ga.Tokens(0.5, 2), "Tokens takes only keep by position, and 2 were given"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_does_not_fit_is_answered_in_our_words(name: str) -> None:
    call, said = CALLS[name]
    with pytest.raises(InvalidOption) as caught:
        call()
    assert str(caught.value).startswith(said)
    assert isinstance(caught.value, TypeError)  # what Python's own would have been
    assert caught.value.__context__ is None


def public() -> list[Any]:
    """Every public function and class whose arguments a user gives."""
    made_by_others = ("Drawn", "Needs", "Context", "Site", "Sites", "Plan", "Verification", "AugmentedModule")
    numbers_only = (
        "alignment",
        "uniformity",
        "tolerance",
        "embedding_std",
        "effective_rank",
        "pair_geometry",
    )
    found = []
    for module in (ga, graphaug.analysis):
        for name in module.__all__:
            value = getattr(module, name)
            ours = isinstance(value, type) and issubclass(value, nn.Module) and name != "PerturbedWeights"
            if (inspect.isfunction(value) or ours) and name not in (*made_by_others, *numbers_only):
                found.append(pytest.param(value, id=name))
    return found


@pytest.mark.parametrize("named", public())
def test_no_public_name_answers_an_unknown_option_with_pythons_words(named: Any) -> None:
    if named is ga.mixed_cross_entropy:  # called in every step, compiled too
        pytest.skip("a loss")
    with pytest.raises(GraphaugError, match=f"{named.__name__} (has no option 'no_such_option'|needs )"):
        named(no_such_option=1)


def test_a_checked_function_is_the_function() -> None:
    assert list(inspect.signature(ga.rewrite).parameters)[:3] == ["model", "at", "rate"]
    assert ga.rewrite.__doc__ is not None
    assert ">>> import torch, graphaug as ga" in ga.rewrite.__doc__  # what help() shows
    aug = ga.rewrite(net(), "1", example_inputs=torch.zeros(2, 4))
    assert isinstance(aug, ga.AugmentedModule)


def test_help_names_all_that_the_rewritten_model_has_beside_the_module() -> None:
    own = {
        name
        for name in vars(ga.AugmentedModule)
        if not name.startswith("_") and not hasattr(fx.GraphModule, name)
    }
    assert {"plan", "set_rate", "given"} <= own
    returned = inspect.getdoc(ga.rewrite).partition("Returns:")[2].partition("Raises:")[0]  # type: ignore[union-attr]
    named = set(re.findall(r"``(\w+)\b", returned))
    assert own <= named, own - named


ERRORS = [
    cls
    for cls in vars(graphaug.errors).values()
    if isinstance(cls, type) and cls.__module__ == "graphaug.errors"
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_stands_in_the_page_about_them(error: type[Exception]) -> None:
    page = Path(__file__).parent.parent / "docs/plans-and-errors.md"
    said = page.read_text(encoding="utf-8").partition("## The errors")[2]
    assert f"`{error.__name__}`" in said or f"`graphaug.{error.__name__}`" in said


def test_a_module_is_answered_with_its_path() -> None:
    model = net()
    with pytest.raises(
        SelectorError, match=r"a Linear object is no selector\. Its path in Sequential is '2\.0': use it"
    ):
        ga.rewrite(model, model[2][0])
    with pytest.raises(SelectorError, match="That is the model itself, whose input is 'input'"):
        ga.rewrite(model, model)
    with pytest.raises(SelectorError, match="Sequential has no such module: use a path or a class"):
        ga.rewrite(model, ["1", nn.Linear(2, 2)])
    model.append(model[1])
    with pytest.raises(SelectorError, match="Its path in Sequential is '1' or '3'"):
        ga.rewrite(model, model[1])
