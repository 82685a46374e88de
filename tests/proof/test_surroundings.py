"""What is left changed is found and put back: by hand, against a copy."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphaug.capture.recording.kept.caches import cached_functions
from graphaug.proof.shadow.surroundings import Surroundings
from graphaug.proof.shadow.watched import Bindings, Container, Many, NewNames


class Keeps(nn.Module):
    """A module with a little of everything."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.table: dict[str, Any] = {"training": 1, "forward": 2}
        self.notes: dict[str, Any] = {"first": None}
        self.recent = collections.deque([1, 2, 3], maxlen=3)
        self.names = {"a"}

    def forward(self, x: Any) -> Any:
        Keeps.count += 1
        return x


CHANGES: dict[str, tuple[Callable[[Keeps], Any], set[str]]] = {
    "an entry called training": (lambda m: m.table.update(training=3), {"table.training"}),
    "an entry called forward": (lambda m: m.table.pop("forward"), {"table.forward (deleted)"}),
    "one None for another": (
        lambda m: m.notes.update(second=m.notes.pop("first")),
        {"notes.second", "notes.first (deleted)"},
    ),
    "a deque": (lambda m: m.recent.append(4), {"recent"}),
    "a set": (lambda m: m.names.add("b"), {"names"}),
    "an attribute": (lambda m: setattr(m, "later", 1), {"later"}),
    "a class attribute": (lambda m: setattr(Keeps, "count", 5), {"Keeps.count"}),
    "a mode": (lambda m: m.train(False), {"training of a module"}),
    "a flag": (lambda m: m.weight.requires_grad_(False), {"weight (what is known of the tensor)"}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_named_and_undone(kind: str) -> None:
    model = Keeps()
    before = copy.deepcopy(vars(model)), Keeps.count, model.weight.requires_grad
    surroundings = Surroundings(model, [model])
    assert list(surroundings.changes()) == []
    change, names = CHANGES[kind]
    change(model)
    assert {name for name, _ in surroundings.changes()} == names
    surroundings.restore()
    assert list(surroundings.changes()) == []
    held = dict(vars(model))
    assert str((held, Keeps.count, model.weight.requires_grad)) == str(before)


def test_what_another_thread_does_is_no_change() -> None:
    model = Keeps()
    thread: Any = threading.Thread()
    thread.woken = 0
    model.table["monitor"] = thread  # as that of tqdm, which a model's file may import
    surroundings = Surroundings(model, [model])
    thread.woken = 1
    assert list(surroundings.changes()) == []
    surroundings.restore()
    assert thread.woken == 1


@pytest.mark.long
@settings(max_examples=8)
@given(st.lists(st.sampled_from(["one more", "one less", "another"]), max_size=12))
def test_every_cached_function_alive_is_found(changes: list[str]) -> None:
    """Against a look at every object alive."""
    kind, held = functools._lru_cache_wrapper, []
    for change in changes:
        if change != "one more" and held:
            held.pop(0)
        if change != "one less":
            held.append(functools.lru_cache(lambda n: n))
        found = {id(f) for f in cached_functions(but=("torch",))}
        alive = (f for f in gc.get_objects() if type(f) is kind)
        assert found == {id(f) for f in alive if (f.__module__ or "").partition(".")[0] != "torch"}


OF_MANY: dict[str, Callable[[list[Any]], Any]] = {
    "an entry of a dict": lambda held: held[0].update(a=[]),
    "an entry that is equal": lambda held: held[0].update(a=[1]),
    "a key more": lambda held: held[0].update(z=1),
    "a key gone": lambda held: held[0].pop("a"),
    "another order": lambda held: held[0].update(b=held[0].pop("b")),
    "an entry of a list": lambda held: held[1].reverse(),
    "a list that grew": lambda held: held[1].append(None),
    "a deque": lambda held: held[2].rotate(),
    "a set": lambda held: held[3].add(7),
    "a name that may come": lambda held: held[4].update(wanted=1),
    "a name that comes": lambda held: held[5].update(new=1),
    "a bound name": lambda held: held[6].update(bound=1),
}


@given(st.lists(st.sampled_from(sorted(OF_MANY)), max_size=4, unique=True), st.booleans())
@settings(deadline=None)
def test_many_tell_what_each_tells(changes: list[str], late: bool) -> None:
    held: list[Any] = [
        {"a": [1], "b": 2},
        [object(), object()],
        collections.deque([1, 2]),
        set(range(0, 90, 9)),
        {"there": 1},
        {"known": 1},
        {"bound": object()},
    ]
    bindings = Bindings()
    bindings.add("bound", lambda: held[6]["bound"], lambda value: held[6].update(bound=value))
    each: list[Any] = [Container(f"container {i}", holder) for i, holder in enumerate(held[:4])]
    each += [
        NewNames("some", held[4], held[4].pop, {"wanted"}),
        NewNames("any", held[5], held[5].pop),
        bindings,
    ]
    many = None if late else Many(each)
    for change in changes:
        OF_MANY[change](held)
    many = many or Many(each)
    assert list(many.changes()) == [found for watched in each for found in watched.changes()]
    assert bool(list(many.changes())) == bool(set(changes) - {"another order"})
    many.restore()
    assert not list(many.changes())
