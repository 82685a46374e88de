"""What the user's objects hold is the same before and after a rewrite, whatever holds it, also if it is refused."""

from __future__ import annotations

import array
import collections
import contextlib
import contextvars
import ctypes
import functools
import importlib
import io
import itertools
import multiprocessing
import queue
import random
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keeping_module
import numpy as np
import pytest
import torch
from torch import Tensor, manual_seed, nn

import graphaug as ga
from graphaug.errors import CaptureError

pytestmark = pytest.mark.few(10)


class Slots:
    __slots__ = ("entry",)

    def __init__(self, entry: Any = None) -> None:
        self.entry = entry


class Dict(dict):
    pass


class Strict(dict):
    """Keys as attributes, as EasyDict has them; every look-up that fails is a KeyError."""

    __getattr__ = dict.__getitem__


class Ordered(collections.OrderedDict):
    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key, last=False)


class Missing(dict):
    def __missing__(self, n: int) -> Tensor:
        self[n] = made(n)
        return self[n]


class Of:
    """Keeps what it made with its class, not with its objects."""

    kept: dict[int, Tensor] = {}  # noqa: RUF012
    last: Tensor | None = None
    calls = 0

    def __init__(self) -> None:
        Of.kept, Of.last, Of.calls = {}, None, 0
        Of.cached.cache_clear()

    @functools.cache  # noqa: B019
    def cached(self, n: int) -> Tensor:
        return made(n)


def made(n: int) -> Tensor:
    return torch.arange(n).float() / 10


def filled(kept: Any) -> Callable[[int], Tensor]:
    """A table in a mapping."""

    def get(n: int) -> Tensor:
        if n not in kept:
            kept[n] = made(n)
        return kept[n]

    return get


def attribute(holder: Any, name: str) -> Callable[[int], Tensor]:
    """A table in an attribute."""

    def get(n: int) -> Tensor:
        if getattr(holder, name, None) is None:
            setattr(holder, name, made(n))
        return getattr(holder, name)

    return get


def own_attribute(n: int) -> Tensor:
    if not hasattr(own_attribute, "kept"):
        own_attribute.kept = made(n)
    return own_attribute.kept


def in_a_default(n: int, kept: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return filled(kept)(n)


VARIABLE: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar("VARIABLE", default=None)


def in_context(n: int) -> Tensor:
    if VARIABLE.get() is None:
        VARIABLE.set(made(n))
    return VARIABLE.get()


class Local(threading.local):
    pass


def of_a_partial(kept: dict[int, Tensor], n: int) -> Tensor:
    return filled(kept)(n)


def listed(n: int, kept: list[Tensor]) -> Tensor:
    kept.append(made(n))
    return kept[0]


TABLES: dict[str, Callable[[], Callable[[int], Tensor]]] = {
    "helper of another file": lambda: lambda n: keeping_module.table(n),
    "cached helper of another file": lambda: lambda n: keeping_module.cached(n),
    "attribute of a function": lambda: own_attribute,
    "default": lambda: in_a_default,
    "dict": lambda: filled({}),
    "subclass of dict": lambda: filled(Dict()),
    "subclass of dict with keys as attributes": lambda: filled(Strict()),
    "subclass of OrderedDict": lambda: filled(Ordered()),
    "UserDict": lambda: filled(collections.UserDict()),
    "__missing__": lambda: Missing().__getitem__,
    "dict in a tuple": lambda: filled(({},)[0]),
    "deep": lambda: (lambda deep: lambda n: filled(deep[0][0]["a"]["b"][0])(n))([[{"a": {"b": ({},)}}]]),
    "SimpleNamespace": lambda: attribute(types.SimpleNamespace(t=None), "t"),
    "slot": lambda: attribute(Slots(), "entry"),
    "slot not set": lambda: attribute(object.__new__(Slots), "entry"),
    "thread local": lambda: attribute(Local(), "t"),
    "context variable": lambda: in_context,
    "class's dict": lambda: (lambda of: lambda n: filled(of.kept)(n))(Of()),
    "class's attribute": lambda: (lambda of: lambda n: attribute(type(of), "last")(n))(Of()),
    "class's cached method": lambda: Of().cached,
    "partial": lambda: functools.partial(of_a_partial, {}),
    "list": lambda: functools.partial(listed, kept=[]),
}
COUNTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "array of NumPy": (lambda: np.zeros(2), lambda c: c.__iadd__(1)),
    "array of objects": (lambda: np.array([[0], None], dtype=object), lambda c: c[0].append(1)),
    "array": (lambda: array.array("i", [0]), lambda c: c.__setitem__(0, c[0] + 1)),
    "bytearray": (lambda: bytearray(1), lambda c: c.append(1)),
    "slot": (lambda: Slots(0), lambda c: setattr(c, "entry", c.entry + 1)),
    "slot in a tuple": (lambda: (Slots(0),), lambda c: setattr(c[0], "entry", c[0].entry + 1)),
    "subclass of dict": (lambda: Dict(n=0), lambda c: c.__setitem__("n", c["n"] + 1)),
    "Counter": (collections.Counter, lambda c: c.update("n")),
    "UserDict": (lambda: collections.UserDict(n=0), lambda c: c.update(n=c["n"] + 1)),
    "UserList": (collections.UserList, lambda c: c.append(1)),
    "subclass of OrderedDict": (lambda: Ordered(a=1, b=2), lambda c: c.__setitem__("c", 1)),
    "order": (lambda: collections.OrderedDict(a=1, b=2), lambda c: c.move_to_end("a")),
    "set": (lambda: {0}, lambda c: c.add(len(c))),
    "deque": (lambda: collections.deque([0], maxlen=3), lambda c: c.append(len(c))),
    "queue": (queue.Queue, lambda c: c.put(1)),
    "list in a namespace": (lambda: types.SimpleNamespace(log=[]), lambda c: c.log.append(1)),
    "deep": (lambda: {"a": {"b": [[[[0]]]]}}, lambda c: c["a"]["b"][0][0][0].append(1)),
    "count": (lambda: itertools.count(3, 2), next),
    "count in a list": (lambda: [[itertools.count()]], lambda c: next(c[0][0])),
    "count in a slot": (lambda: Slots(itertools.count(0.5)), lambda c: next(c.entry)),
    "tensor in a dict": (lambda: {"n": torch.zeros(())}, lambda c: c["n"].add_(1)),
    "tensor in a namespace": (
        lambda: types.SimpleNamespace(n=torch.zeros(2)),
        lambda c: c.n.mul_(0.9).add_(1),
    ),
    "tensor in a list of modules": (lambda: [[nn.BatchNorm1d(8)]], lambda c: c[0][0].running_mean.add_(1)),
    "other file's number": (
        lambda: keeping_module,
        lambda c: setattr(keeping_module, "CALLS", keeping_module.CALLS + 1),
    ),
    "other class's number": (lambda: Of, lambda c: setattr(Of, "calls", Of.calls + 1)),
    "Random in a tuple": (lambda: (random.Random(0),), lambda c: c[0].random()),
    "Random in a slot": (lambda: Slots(random.Random(0)), lambda c: c.entry.random()),
    "bound method of a Random": (lambda: random.Random(0).random, lambda c: c()),
    "bound method of NumPy's": (lambda: np.random.default_rng(0).random, lambda c: c()),
    "bits of NumPy's": (lambda: np.random.PCG64(0), lambda c: c.random_raw()),
    "number of C": (lambda: ctypes.c_int(0), lambda c: setattr(c, "value", c.value + 1)),
    "numbers of C": (lambda: (ctypes.c_double * 2)(), lambda c: c.__setitem__(1, c[1] + 1)),
    "number of processes": (
        lambda: multiprocessing.Value("i", 0),
        lambda c: setattr(c, "value", c.value + 1),
    ),
    "text in memory": (io.StringIO, lambda c: c.write("\r\n")),
    "bytes in memory": (lambda: io.BytesIO(b"ab"), lambda c: c.read(1)),
    "event": (threading.Event, lambda c: c.clear() if c.is_set() else c.set()),
    "semaphore": (lambda: threading.Semaphore(3), lambda c: c.release()),
    "queue of C": (queue.SimpleQueue, lambda c: (c.put([1]), c.put(2), c.get())),
    "generator of torch": (
        lambda: [torch.Generator()],
        lambda c: c[0].manual_seed(int(c[0].initial_seed()) + 1),
    ),
}


class Keeps(nn.Module):
    """A forward that calls something that keeps, in front of a layer."""

    def __init__(self, touch: Callable[[Tensor], Tensor], held: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.held = nn.Linear(8, 8), nn.Linear(8, 8), held
        self.touch = touch

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.touch(self.first(x)))


class Branches(Keeps):
    """One that no graph can hold: it looks at the data, behind all that keeps something."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h if h.sum() > 0 else -h


HOW: dict[str, Callable[..., tuple[nn.Module, str]]] = {
    "closed": lambda *given: (nn.Sequential(Keeps(*given), nn.Linear(8, 8)), "1"),
    "opened": lambda *given: (Keeps(*given), "first"),
    "refused": lambda *given: (Branches(*given), "first"),
}


def picture(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """All that a value holds, as something that compares: by hand, as a reader would list it."""
    if id(value) in seen:
        return "again"
    inner = functools.partial(picture, seen=(*seen, id(value)))
    if isinstance(value, Tensor):
        return type(value).__name__, value.tolist()
    if isinstance(value, types.ModuleType):
        return {k: inner(v) for k, v in vars(value).items() if k.isupper()}
    if isinstance(value, type):
        return {k: inner(v) for k, v in vars(value).items() if k in ("kept", "last", "calls")}
    if isinstance(value, (random.Random, np.random.BitGenerator, torch.Generator)):
        states = {random.Random: "getstate", torch.Generator: "get_state"}
        read = states.get(type(value))
        return repr(value.state) if read is None else str([*getattr(value, read)()])
    if isinstance(value, np.ndarray):
        return inner(value.tolist())
    if isinstance(value, np.random.Generator):
        return inner(value.bit_generator)
    if isinstance(value, (types.BuiltinMethodType, types.MethodType)):
        return inner(value.__self__)
    if isinstance(value, collections.OrderedDict):
        return type(value), [(k, inner(v)) for k, v in value.items()]
    if isinstance(value, dict):
        return type(value), [(k, inner(v)) for k, v in dict.items(value)]
    if isinstance(value, (list, tuple, set, collections.deque)):
        return type(value), [inner(v) for v in value]
    if isinstance(value, ctypes.Array):
        return list(value)
    if isinstance(value, queue.SimpleQueue):
        return value.qsize()
    if isinstance(value, (io.StringIO, io.BytesIO)):
        return value.getvalue(), value.tell()
    if isinstance(value, Slots):
        return inner(getattr(value, "entry", "unset"))
    if type(value).__module__ in ("collections", "queue", "types", "torch.nn.modules.batchnorm"):
        return {k: inner(v) for k, v in vars(value).items() if "lock" not in repr(v)}
    return repr(value)


def rewritten(model: nn.Module, at: str) -> bool:
    try:
        ga.rewrite(model, at, example_inputs=torch.randn(4, 8))
    except ga.GraphaugError:
        return False
    return True


@pytest.mark.few(6)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("table", TABLES)
def test_no_table_keeps_a_fake(table: str, how: str) -> None:
    get = TABLES[table]()
    model, at = HOW[how](lambda h: h + get(int(h.shape[1])))
    assert rewritten(model, at) or how != "closed"
    assert type(model(torch.randn(4, 8))) is Tensor
    keeping_module.TABLES.clear()
    vars(own_attribute).clear()
    VARIABLE.set(None)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other thread were alive; those of a test runner are."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.mark.few(6)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.usefixtures("alone")
def test_what_a_forward_moves_is_put_back(count: str, how: str) -> None:
    make, move = COUNTS[count]
    held = [make()]
    model, at = HOW[how](lambda h: (move(held[0]), h)[1], held)
    before = picture(held[0])
    assert rewritten(model, at) or how != "closed"
    assert picture(held[0]) == before
    model(torch.randn(4, 8))
    assert picture(held[0]) != before  # else this shows nothing


@pytest.mark.usefixtures("alone")
def test_a_queue_of_c_holds_what_it_held() -> None:
    kept: Any = queue.SimpleQueue()
    for entry in ([1], "b", "c"):
        kept.put(entry)
    kept.get()
    model, at = HOW["closed"](lambda h: (kept.put(h), kept.get(), h)[2])
    assert rewritten(model, at)
    assert [kept.get_nowait() for _ in range(kept.qsize())] == ["b", "c"]


def test_a_future_that_is_given_a_fake_is_refused() -> None:
    kept: Any = torch.futures.Future()
    model, at = HOW["closed"](lambda h: (kept.done() or kept.set_result(h), h)[1])
    with pytest.raises(CaptureError, match=r"a Future, .*keeps what a forward gives it"):
        ga.rewrite(model, at, example_inputs=torch.randn(4, 8))


def test_an_event_that_another_thread_may_have_set_is_left_alone() -> None:
    event, end = threading.Event(), threading.Event()
    model, at = HOW["closed"](lambda h: (event.set(), h)[1])
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(CaptureError, match="of class Event that it reaches was changed meanwhile"):
            ga.rewrite(model, at, example_inputs=torch.randn(4, 8))
        assert event.is_set()
    finally:
        end.set()
        other.join()


@pytest.mark.few(1)
@pytest.mark.parametrize("earlier", range(4))
def test_a_cache_is_not_told_by_its_counts(earlier: int) -> None:
    for at in ("1", "0.first"):
        keeping_module.cached.cache_clear()
        for n in range(20, 20 + earlier):
            keeping_module.cached(n)
        model = nn.Sequential(Keeps(lambda h: h + keeping_module.cached(int(h.shape[1]))), nn.Linear(8, 8))
        rewritten(model, at)
        assert type(model(torch.randn(4, 8))) is Tensor


def test_what_was_made_on_first_use_may_stay() -> None:
    made_before = keeping_module.cached(3)
    model = nn.Sequential(Keeps(lambda h: h), nn.Linear(8, 8))
    assert rewritten(model, "1")
    assert keeping_module.cached(3) is made_before


def test_a_counter_in_opened_code_is_named() -> None:
    held = [itertools.count()]
    model, at = HOW["opened"](lambda h: (next(held[0]), h)[1])
    with pytest.raises(CaptureError, match=r"it takes numbers from .*, an itertools\.count"):
        ga.rewrite(model, at, example_inputs=torch.randn(4, 8))
    assert repr(held[0]) == "count(0)"


def test_what_nothing_can_take_out_is_refused() -> None:
    fixed = (itertools.count(),)
    model, at = HOW["closed"](lambda h: (next(fixed[0]), h)[1])
    with pytest.raises(CaptureError, match=r"itertools\.count where none can be put back"):
        ga.rewrite(model, at, example_inputs=torch.randn(4, 8))


def sends() -> Any:
    kept, n = None, (yield)
    while True:
        kept = made(n) if kept is None else kept
        n = yield kept


@pytest.mark.parametrize("how", HOW)
def test_a_generator_that_keeps_a_fake_is_named(how: str) -> None:
    generator = sends()
    next(generator)
    model, at = HOW[how](lambda h: h + generator.send(int(h.shape[1])))
    with pytest.raises(CaptureError, match=r"an iterator \(generator\) that cannot be put back"):
        ga.rewrite(model, at, example_inputs=torch.randn(4, 8))


@pytest.mark.parametrize("how", HOW)
def test_a_cycle_goes_on(how: str) -> None:
    cycle = itertools.cycle([1.0, 2.0])
    model, at = HOW[how](lambda h: h * next(cycle))
    rewritten(model, at)
    assert {next(cycle), next(cycle)} == {1.0, 2.0}


@pytest.mark.parametrize("how", HOW)
def test_a_module_that_a_forward_imports_first_keeps_no_fake(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imported_late_{how}"
    (tmp_path / f"{name}.py").write_text(Path(str(keeping_module.__file__)).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    model, at = HOW[how](lambda h: h + importlib.import_module(name).table(int(h.shape[1])))
    rewritten(model, at)
    assert type(model(torch.randn(4, 8))) is Tensor


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seeds", [lambda: manual_seed(0), lambda: torch.default_generator.manual_seed(1)])
def test_the_generator_of_torch_is_as_it_was(seeds: Callable[[], Any], how: str) -> None:
    model, at = HOW[how](lambda h: (seeds(), h * torch.rand(8))[1])
    x = torch.randn(4, 8)
    manual_seed(5)
    before = torch.get_rng_state()
    with contextlib.suppress(ga.GraphaugError):
        ga.rewrite(model, at, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 5


def test_a_generator_among_the_inputs_is_as_it_was() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, rng: Any) -> Tensor:
            return self.second(self.first(x) * rng.random())

    rng = random.Random(0)
    before = rng.getstate()
    with pytest.raises(CaptureError):
        ga.rewrite(Drawn(), "first", example_inputs={"x": torch.randn(4, 8), "rng": rng})
    assert rng.getstate() == before


class Refuses:
    """Answers nothing that it is not asked for by its own name."""

    def __init__(self) -> None:
        self.gain = 2.0

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class RefusesSlots:
    __slots__ = ("gain",)

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("eq")

    def __bool__(self) -> bool:
        raise TypeError("bool")

    def __len__(self) -> int:
        raise TypeError("len")

    __hash__ = None


class Silent(dict):
    def _no(self, *args: Any) -> Any:
        raise RuntimeError("not in this way")

    __iter__ = __len__ = keys = values = items = _no


class SilentList(list):
    def _no(self, *args: Any) -> Any:
        raise RuntimeError("not in this way")

    __iter__ = __len__ = _no


ODD = (Strict, Refuses, RefusesSlots, Incomparable, Silent, SilentList)


@pytest.mark.few(4)
@pytest.mark.parametrize("how", ["closed", "opened"])
@pytest.mark.parametrize("kind", ODD)
def test_objects_are_read_without_running_their_code(kind: type, how: str) -> None:
    held: Any = kind()
    for value in (held, [[held]], types.SimpleNamespace(inner=held)):
        model, at = HOW[how](lambda h: h, value)
        assert rewritten(model, at)


def test_the_walk_ends_in_a_circle() -> None:
    held: Any = types.SimpleNamespace()
    held.itself, held.log = [held], {}
    model, at = HOW["closed"](lambda h: h + attribute(held, "table")(8), held)
    assert rewritten(model, at)
    assert vars(held).keys() == {"itself", "log"}
