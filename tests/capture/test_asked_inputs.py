"""Of a dict among the inputs, the graph relies on what opened code asks of it, and on nothing else."""

import copy
import json
import operator
import pickle
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.recording.values.watched import watched
from graphaug.errors import AssumptionViolated


class Closed(nn.Module):
    """Stays closed: what it asks of what it is handed is not seen."""

    def forward(self, h: Tensor, given) -> Tensor:
        given = given() if callable(given) else given
        return h * (3 if given["mode"] == "train" else 2)


def matches(batch):
    match batch:
        case {"mode": "train", "meta": {"fold": 1}}:
            return 1
        case {"mode": "train"}:
            return 2
    return 3


def raises(batch):
    try:
        batch["mask"]
    except KeyError:
        return 1
    return 2


IN_MODE, IN_META, FILES, KEYS = (
    {"mode", "no mode"},
    {"more meta", "no meta"},
    {"files", "no files"},
    {*("more", "mask", "no mode", "no meta", "no files", "order")},
)
WHOLE = IN_MODE | IN_META | FILES | KEYS
"""As far as text tells: of a number, the graph reads it in every call."""
ENTRIES = IN_MODE | FILES | KEYS
# what a forward asks, and the changes of its input that it is to notice
QUESTIONS = {
    "nothing": (lambda batch: 1, set()),
    "whether a key is there": (lambda batch: 2 if "files" in batch else 3, {"no files"}),
    "whether a key is not": (lambda batch: 2 if "mask" in batch else 3, {"mask"}),
    "a key that may be missing": (lambda batch: 2 if batch.get("mask") is None else 3, {"mask"}),
    "a key that is missing": (raises, {"mask"}),
    "a string": (lambda batch: 2 if batch["mode"] == "train" else 3, IN_MODE),
    "an entry of a table": (lambda batch: {"train": 2, "eval": 3}[batch["mode"]], IN_MODE),
    "by an operator": (lambda batch: len(operator.itemgetter("mode")(batch)), IN_MODE),
    "strings in a list": (lambda batch: len("".join(batch["files"])), FILES),
    "a number": (lambda batch: 2 if batch["epoch"] > 1 else 3, {"epoch"}),
    "a pattern": (matches, KEYS | IN_MODE | IN_META | {"fold"}),
    "an inner entry": (lambda batch: 1 + batch["meta"].get("fold", 5), {"no meta"}),
    "an inner string": (lambda batch: len(batch["meta"]["name"]), {"no meta"}),
    "whether it is a dict": (lambda batch: 1 + isinstance(batch.get("meta"), dict), {"no meta"}),
    "an inner dict's length": (lambda batch: len(batch["meta"]), {"more meta", "no meta"}),
    "an inner dict's truth": (lambda batch: 2 if batch["meta"] else 1, {"more meta", "no meta"}),
    "an inner dict in text": (lambda batch: len(str(batch["meta"]["tags"])), {"no meta"}),
    "json": (lambda batch: len(json.dumps(batch["meta"]["tags"])), {"no meta"}),
    "a comparison": (lambda batch: 1 + (batch["meta"]["tags"] == {"a": "b"}), {"no meta"}),
    "leaves": (lambda batch: len(torch.utils._pytree.tree_leaves(batch["meta"]["tags"])), {"no meta"}),
    "a deep copy": (lambda batch: len(copy.deepcopy(batch["meta"]["tags"])), {"no meta"}),
    "a length": (lambda batch: len(batch), KEYS),
    "its keys": (lambda batch: sum(key.startswith("m") for key in batch), KEYS),
    "its sorted keys": (lambda batch: len(sorted(batch.keys())[0]), KEYS),
    "its entries": (lambda batch: sum(isinstance(v, str) for v in batch.values()), WHOLE),
    "its items": (lambda batch: sum(isinstance(v, str) for _, v in batch.items()), WHOLE),
    "a copy": (lambda batch: len(copy.copy(batch)["mode"]), WHOLE),
    "a merged copy": (lambda batch: len(({"mode": ""} | batch)["mode"]), WHOLE),
    "unpacked": (lambda batch: len({**batch, "x": 0}["mode"]), ENTRIES),
    "a dict of it": (lambda batch: len(dict(batch)["mode"]), ENTRIES),
    "keywords": (lambda batch: len("{mode}".format(**batch)), ENTRIES),
    "a format": (lambda batch: len("{mode}".format_map(batch)), IN_MODE),
    "what it takes out": (lambda batch: len(batch.pop("mode")), WHOLE),
    "what it adds": (lambda batch: len(batch.setdefault("mode", "")), WHOLE),
}


class Asking(nn.Module):
    """A forward that asks something of its input."""

    def __init__(self, *questions: str) -> None:
        super().__init__()
        self.first, self.closed, self.last = nn.Linear(4, 4), Closed(), nn.Linear(4, 2)
        self.questions = questions

    def forward(self, batch) -> Tensor:
        h = self.first(batch["x"])
        for question in self.questions:
            h = h * QUESTIONS[question][0](batch)
        return self.last(h)


class HandingOn(Asking):
    """It hands its input, or a part of it, to a module that stays closed."""

    def forward(self, batch) -> Tensor:
        h = self.first(batch["x"])
        return self.last(self.closed(h, (lambda: batch) if self.questions else batch))


class OfAType(Asking):
    """It asks for the very type."""

    def forward(self, batch) -> Tensor:
        h = self.first(batch["x"])
        return self.last(h if type(batch) is dict else -h)


class PastItsMethods(Asking):
    """It calls a method of the class, which an object cannot see."""

    def forward(self, batch) -> Tensor:
        h = self.first(batch["x"])
        return self.last(h if dict.get(batch, "mode") == "train" else -h)


class ByAModule(Asking):
    """A function of another module asks for the type."""

    def forward(self, batch) -> Tensor:
        return self.last(self.first(batch["x"]) * library.kind(batch))


def _kind(batch) -> int:
    return 2 if type(batch) is dict else 3


library = types.ModuleType("library")
library.kind = _kind
del _kind


def example() -> dict:
    return {
        **{"x": torch.linspace(-1, 1, 8).reshape(2, 4), "mode": "train", "files": ["a", "b"], "epoch": 0},
        "meta": {"fold": 1, "name": "n", "tags": {"a": "b"}},
    }


def changes() -> dict[str, dict]:
    """The example with one thing changed."""
    found = {
        "mode": {"mode": "eval"},
        "files": {"files": ["a", "ccc"]},
        "epoch": {"epoch": 7},
        "more": {"more": 1},
        "mask": {"mask": torch.ones(2)},
        "fold": {"meta": {**example()["meta"], "fold": 2}},
        "more meta": {"meta": {**example()["meta"], "more": "text"}},
    }
    made = {name: {**example(), **change} for name, change in found.items()}
    for name, key in (("no mode", "mode"), ("no meta", "meta"), ("no files", "files")):
        made[name] = {k: v for k, v in example().items() if k != key}
    return {**made, "order": dict(reversed(example().items()))}


def noticed(model: nn.Module) -> set[str]:
    """The changes that a rewritten model refuses; for any other, it is to compute what the model does."""
    aug = ga.rewrite(model, at="first", rate=0.0, allow_bypass=True, example_inputs=(example(),)).train()
    refused = set()
    for name, batch in changes().items():
        try:
            found = aug(copy.deepcopy(batch))
        except AssumptionViolated:
            refused.add(name)
        else:
            torch.testing.assert_close(found, model(batch), rtol=0, atol=0)
    return refused


@pytest.mark.few(14)
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_asked_is_relied_on_and_nothing_else(question):
    assert noticed(Asking(question)) == QUESTIONS[question][1]


@pytest.mark.long
@given(
    st.lists(st.sampled_from(sorted(QUESTIONS)), min_size=2, max_size=4, unique=True),
    st.dictionaries(
        st.sampled_from(["mode", "files", "epoch", "mask", "more"]),
        st.one_of(
            st.sampled_from(["train", "eval"]), st.lists(st.text(max_size=2)), st.integers(0, 2), st.none()
        ),
    ),
    st.sets(st.sampled_from(["mode", "files", "epoch", "meta"])),
)
@settings(max_examples=10, deadline=None)
def test_a_call_is_computed_as_the_model_does_or_refused(questions, more, missing):
    model = Asking(*questions)
    try:
        model(example())
    except KeyError:  # one question has taken out what another asks for
        return
    aug = ga.rewrite(model, at="first", rate=0.0, example_inputs=(example(),)).train()
    batch = {k: v for k, v in {**example(), **more}.items() if k not in missing}
    found = outcome(aug, batch)
    if isinstance(found, AssumptionViolated):
        return
    expected = outcome(model, batch)
    if isinstance(expected, Exception):
        assert type(found) is type(expected)
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def outcome(model, batch):
    """What a model computes of a batch, or what it raises."""
    try:
        return model(copy.deepcopy(batch))
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("model", "noticing"),
    [
        (HandingOn(), WHOLE),
        (HandingOn("later"), IN_MODE),
        (OfAType(), WHOLE),
        (PastItsMethods(), WHOLE),
        (ByAModule(), WHOLE),
    ],
    ids=["closed", "by a function", "type", "past its methods", "by a module"],
)
def test_what_is_handed_on_is_relied_on(model, noticing):
    assert noticed(model) == noticing


def test_a_set_and_a_dtype_are_relied_on_by_what_they_are():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, batch) -> Tensor:
            h = self.first(batch["x"]).to(batch["dtype"])
            return h * 2 if "a" in batch["tags"] else h

    batch = {"x": torch.ones(2, 4), "dtype": torch.float64, "tags": {"a", "b"}}
    aug = ga.rewrite(Net(), at="first", example_inputs=(batch,)).train()
    aug({**batch, "tags": {"b", "a"}})
    for change in ({"dtype": torch.float16}, {"tags": {"b"}}):
        with pytest.raises(AssumptionViolated, match="layout"):
            aug({**batch, **change})


def test_the_plan_and_the_error_name_what_was_asked():
    aug = ga.rewrite(Asking("a key that may be missing"), at="first", example_inputs=(example(),)).train()
    assert list(aug.plan.assumptions) == ["layout(batch) == '{x: Tensor, no mask, …}'"]
    with pytest.raises(AssumptionViolated, match=r"this call has '\{x: Tensor, mask: Tensor, …\}'"):
        aug(changes()["mask"])


def test_compiled_code_relies_on_the_same():
    aug = ga.rewrite(
        Asking("whether a key is not", "a length"), at="first", rate=0.0, example_inputs=(example(),)
    )
    compiled = torch.compile(aug.train(), fullgraph=True, backend="eager")
    batch = changes()["files"]
    torch.testing.assert_close(compiled(batch), aug(batch))


def test_what_opened_code_gets_is_a_dict_to_all_that_ask():
    got = watched({"a": 1, "b": {"c": 2}})
    assert isinstance(got, dict)
    assert got.__class__ is dict
    assert type(type(got)(a=1)) is dict
    assert type(copy.copy(got)) is type(copy.deepcopy(got)) is type(pickle.loads(pickle.dumps(got))) is dict
    assert got == {"a": 1, "b": {"c": 2}} == got | {} == {} | got
    assert list(got) == list(got.keys()) == ["a", "b"]
