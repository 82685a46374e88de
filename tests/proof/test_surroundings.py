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
