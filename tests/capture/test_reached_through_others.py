"""What a forward reads past its own attributes: ``__getattr__``, weak proxies, what threads and C code share."""

from __future__ import annotations

import collections
import copy
import ctypes
import datetime
import decimal
import functools
import io
import logging
import multiprocessing
import pathlib
import queue
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A forward that is scaled by what a case's function finds."""

    def __init__(self, held: Any, read: Callable[[Any], float]) -> None:
        super().__init__()
        self.inner, self.held, self.read = nn.Linear(6, 6), held, read

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.read(self.held)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], float], Callable[[Any], Any]]] = {
    "an event": (threading.Event, lambda e: 5.0 if e.is_set() else 1.0, lambda e: e.set()),
    "a queue": (queue.Queue, lambda q: 1.0 + q.qsize(), lambda q: q.put(1)),
    "a value of processes": (
        lambda: multiprocessing.Value("d", 1.0),
        lambda v: v.value,
        lambda v: setattr(v, "value", 9.0),
    ),
    "a raw array": (
        lambda: multiprocessing.RawArray("d", [1.0]),
        lambda a: a[0],
        lambda a: a.__setitem__(0, 9.0),
    ),
    "a number of C": (lambda: ctypes.c_double(1.0), lambda c: c.value, lambda c: setattr(c, "value", 9.0)),
    "a view of bytes": (
        lambda: memoryview(bytearray([1])),
        lambda m: float(m[0]),
        lambda m: m.__setitem__(0, 9),
    ),
}


def test_an_event_is_read_by_compiled_code() -> None:
    event = threading.Event()
    model = Net(event, lambda e: 5.0 if e.is_set() else 1.0).eval()
    fast = torch.compile(ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).eval(), backend="eager")
    for _ in range(2):
        assert torch.equal(fast(X), model(X))
        event.set()


def while_taken(lock: Any) -> float:
    with lock:
        return 2.0


UNSEEN: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "a lock": (threading.Lock, lambda lock: 2.0 if lock.locked() else 1.0),
    "a simple queue": (queue.SimpleQueue, lambda q: 1.0 + q.qsize()),
    "a text in memory": (lambda: io.StringIO("ab"), lambda file: float(len(file.getvalue()))),
    "a decimal context": (lambda: decimal.Context(prec=3), lambda context: float(context.prec)),
    "a distribution": (lambda: torch.distributions.Normal(0.0, 2.0), lambda d: d.scale),
    "a logger": (
        lambda: logging.getLogger("graphaug.tests"),
        lambda held: 2.0 if held.isEnabledFor(logging.DEBUG) else 1.0,
    ),
}
"""What nothing can compare from one call to the next."""
FIXED: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "a date": (lambda: datetime.date(2020, 1, 2), lambda date: float(date.year)),
    "a pattern": (lambda: re.compile("a(b)"), lambda pattern: float(pattern.groups)),
    "a path": (lambda: pathlib.PurePosixPath("a/b"), lambda path: float(len(path.parts))),
    "a type's limits": (lambda: torch.finfo(torch.float32), lambda info: float(info.bits)),
    "a lock that is taken": (threading.Lock, while_taken),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_the_plan_tells_what_is_read_and_not_compared(name: str) -> None:
    make, read = UNSEEN[name]
    model = Net(make(), read)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    (note,) = (n for n in aug.plan.notes if "not compared in every call" in n)
    assert f"held (of class {type(model.held).__name__})" in note


@pytest.mark.parametrize("name", FIXED)
def test_and_nothing_of_what_stays_as_it_is(name: str) -> None:
    make, read = FIXED[name]
    aug = ga.rewrite(Net(make(), read), at="inner", rate=0.0, example_inputs=X)
    assert not any("not compared" in n for n in aug.plan.notes)


class Logging(Net):
    """Writes to a logger, and asks it nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.held.info("shape %s", x.shape)
        return self.inner(x)


def test_a_logger_that_is_written_to_is_none_of_it() -> None:
    model = Logging(logging.getLogger("graphaug.tests"), float)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert not any("not compared" in n for n in aug.plan.notes)


class Options:
    """What a proxy, a weak dict or a copy can be of."""

    def __init__(self) -> None:
        self.gain = 2.0


def test_a_weak_proxy_stands_for_what_it_refers_to() -> None:
    options = Options()
    model = Net(weakref.proxy(options), lambda held: held.gain)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()
    assert torch.equal(aug(X), model(X))
    options.gain = 3.0
    with pytest.raises(AssumptionViolated, match="gain"):
        aug(X)


class Answering(nn.Module):
    """Answers for attributes that it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.store = nn.Linear(6, 6), {"gain": 2.0}

    def __getattr__(self, name: str) -> Any:
        if name != "store" and name in self.__dict__.get("store", {}):
            return self.__dict__["store"][name]
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain


class Sized(nn.Module):
    """Tells a length that no code names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rows = nn.Linear(6, 6), [1, 2]

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * len(self)


@pytest.mark.parametrize(
    ("cls", "change"),
    [(Answering, lambda m: m.store.update(gain=100.0)), (Sized, lambda m: m.rows.append(3))],
    ids=["__getattr__", "__len__"],
)
def test_methods_that_no_code_names_are_followed(cls: type[nn.Module], change: Callable[[Any], None]) -> None:
    model = cls()
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()
    assert torch.equal(aug(X), model(X))
    change(model)
    with pytest.raises(AssumptionViolated, match="Call rewrite again"):
        aug(X)


def test_a_generator_is_refused_before_anything_is_taken() -> None:
    def numbers() -> Iterator[float]:
        yield from (1.0, 2.0)

    model = Net(numbers(), lambda held: next(held))
    with pytest.raises(CaptureError, match=r"self\.held, a generator"):
        ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert next(model.held) == 1.0


class Remembering(nn.Module):
    """Keeps what a method returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    @functools.lru_cache  # noqa: B019 - as people write it
    def table(self, n: int) -> Tensor:
        return torch.arange(float(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.table(6)


def test_what_functools_keeps_of_a_method_is_refused_by_its_name() -> None:
    with pytest.raises(CaptureError, match=r"table, a method whose results functools keeps.*register_buffer"):
        ga.rewrite(Remembering(), at="inner", rate=0.0, example_inputs=X)


def test_a_defaultdict_that_a_read_fills_is_refused_by_its_name() -> None:
    held: Any = collections.defaultdict(lambda: 1.0)
    with pytest.raises(CaptureError, match=r"held, a defaultdict, which a read of a missing key fills"):
        ga.rewrite(Net(held, lambda d: d["gain"]), at="inner", rate=0.0, example_inputs=X)
    assert not held
    held["gain"] = 2.0
    model = Net(held, lambda d: d["gain"])
    assert torch.equal(ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()(X), model(X))


def scaled() -> Callable[[], float]:
    def scale() -> float:
        return 1.0

    scale.gain = 2.0  # type: ignore[attr-defined]
    return scale


def weighted() -> nn.Linear:
    layer = nn.Linear(6, 6)
    layer.weight.gain = 2.0  # type: ignore[assignment]
    return layer


def viewed() -> tuple[dict[str, float], Any]:
    held = {"gain": 2.0}
    return held, held.values()


def weakly() -> tuple[Options, Any]:
    options = Options()
    return options, weakref.WeakValueDictionary(gain=options)


def joined() -> tuple[list[Options], Any]:
    options = [Options(), Options()]
    return options, weakref.WeakSet(options[:1])


SET: dict[str, tuple[Callable[[], Any], Callable[[Any], float], Callable[[Any], Any]]] = {
    "a function": (scaled, lambda f: f.gain, lambda f: setattr(f, "gain", 3.0)),
    "a weight": (weighted, lambda m: m.weight.gain, lambda m: setattr(m.weight, "gain", 3.0)),
    "a copy": (Options, lambda o: copy.deepcopy(o).gain, lambda o: setattr(o, "gain", 3.0)),
    "a view of a dict": (viewed, lambda held: sum(held[1]), lambda held: held[0].update(gain=3.0)),
    "a weak dict": (weakly, lambda held: held[1]["gain"].gain, lambda held: setattr(held[0], "gain", 3.0)),
    "a weak set": (joined, lambda held: float(len(held[1])), lambda held: held[1].add(held[0][1])),
}


@pytest.mark.parametrize("name", [*CASES, *SET])
def test_what_others_share_and_what_is_set_on_things_is_relied_on(name: str) -> None:
    make, read, change = {**CASES, **SET}[name]
    held = make()
    model = Net(held, read)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()
    assert torch.equal(aug(X), model(X))
    change(held)
    with pytest.raises(AssumptionViolated, match=r"held.*Call rewrite again"):
        aug(X)
    assert torch.equal(aug.eval()(X), model.eval()(X))
