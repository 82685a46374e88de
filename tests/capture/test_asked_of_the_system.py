"""What opened code asks Python and the system, and reads off what is torch's or Python's: noticed when it changes."""

import builtins
import copy
import datetime
import decimal
import gc
import glob
import importlib.util
import io
import math
import multiprocessing
import os
import pathlib
import pickle
import shutil
import string
import sys
import threading
import time
import types
from collections.abc import Callable
from os import getcwd, getenv
from typing import Any

import numpy as np
import pytest
import torch
from compiling import check_noticed_when_compiled
from torch import Tensor, nn
from torch.nn import functional as F

import graphaug as ga
from graphaug.errors import AssumptionViolated

NAME = "GRAPHAUG_TESTS_ASK"
settings = types.ModuleType("settings")
modules = sys.modules


def imported() -> float:
    from torch import put_there

    return put_there


class Options:
    """A class whose attribute methods read."""

    scale = 1.0


class Asks(nn.Module):
    """A forward that scales by what it asks for."""

    def __init__(self, asks: Callable[[Any], float]) -> None:
        super().__init__()
        self.first, self.last, self.asks = nn.Linear(4, 4), nn.Linear(4, 4), asks
        self.name = NAME

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * self.asks(self))


class OfTensors(nn.Module):
    """A forward that reads what a user has put on the class of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * h.put_there)  # type: ignore[attr-defined]


# --- what lies on things of torch, NumPy and Python ---------------------------------------------------------

PUT: dict[str, tuple[Callable[[Any], float], Callable[[Any], Any]]] = {
    "torch": (lambda m: torch.put_there, lambda v: setattr(torch, "put_there", v)),
    "a module of torch": (lambda m: F.put_there, lambda v: setattr(F, "put_there", v)),
    "a module in a module": (lambda m: torch.nn.put_there, lambda v: setattr(torch.nn, "put_there", v)),
    "numpy": (lambda m: np.put_there, lambda v: setattr(np, "put_there", v)),
    "Python": (lambda m: string.put_there, lambda v: setattr(string, "put_there", v)),
    "an import": (lambda m: imported(), lambda v: setattr(torch, "put_there", v)),
    "builtins": (lambda m: put_there, lambda v: setattr(builtins, "put_there", v)),  # noqa: F821
    "an object": (
        lambda m: torch.put_there.scale,
        lambda v: setattr(torch, "put_there", types.SimpleNamespace(scale=v)),
    ),
    "a dict": (lambda m: torch.put_there["p"], lambda v: setattr(torch, "put_there", {"p": v})),
    "a function": (lambda m: F.put_there(2.0), lambda v: setattr(F, "put_there", lambda x: x * v)),
    "nn.Module": (lambda m: m.put_there, lambda v: setattr(nn.Module, "put_there", v)),
    "nn.Module by its name": (lambda m: nn.Module.put_there, lambda v: setattr(nn.Module, "put_there", v)),
    "a method of nn.Module": (
        lambda m: m.put_there(),
        lambda v: (setattr(nn.Module, "put_there", lambda self: Options.scale), setattr(Options, "scale", v)),
    ),
    "a property of nn.Module": (
        lambda m: m.put_there,
        lambda v: (
            setattr(nn.Module, "put_there", property(lambda self: Options.scale)),
            setattr(Options, "scale", v),
        ),
    ),
    "a layer's class": (lambda m: nn.Linear.put_there, lambda v: setattr(nn.Linear, "put_there", v)),
    "a closed layer's class": (lambda m: m.first.put_there, lambda v: setattr(nn.Linear, "put_there", v)),
    "the class of tensors": (lambda m: Tensor.put_there, lambda v: setattr(Tensor, "put_there", v)),
    "a module asked for": (
        lambda m: 1.0 if "GRAPHAUG_TESTS_ASK" in sys.modules else 2.0,
        lambda v: sys.modules.update({NAME: types.ModuleType(NAME)} if v > 1 else {}),
    ),
    "a module got": (
        lambda m: 1.0 if modules.get("GRAPHAUG_TESTS_ASK") else 2.0,
        lambda v: sys.modules.update({NAME: types.ModuleType(NAME)} if v > 1 else {}),
    ),
}
MISSING: dict[str, tuple[Callable[[Any], float], Any]] = {
    "torch": (lambda m: getattr(torch, "put_there", 1.0), torch),
    "settings": (lambda m: getattr(settings, "put_there", 1.0), settings),
    "whether settings have it": (lambda m: 3.0 if hasattr(settings, "put_there") else 1.0, settings),
    "a function": (lambda m: getattr(F.softmax, "put_there", 1.0), F.softmax),
    "a function of the user's": (lambda m: getattr(imported, "put_there", 1.0), imported),
    "nn.Module": (lambda m: getattr(nn.Module, "put_there", 1.0), nn.Module),
    "the class of tensors": (lambda m: getattr(Tensor, "put_there", 1.0), Tensor),
    "Python": (lambda m: 3.0 if hasattr(sys, "put_there") else 1.0, sys),
}
REPLACED: dict[str, tuple[Callable[[Any], float], Any, str]] = {
    "math": (lambda m: float(math.floor(1.5)), math, "floor"),
    "numpy": (lambda m: float(np.floor(1.5)), np, "floor"),
    "builtins": (lambda m: float(round(1.4)), builtins, "round"),
    "a question": (lambda m: 1.0 + os.path.exists("/"), os.path, "exists"),
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the tests put somewhere is taken away again."""
    yield
    for owner in (torch, F, torch.nn, np, string, sys, builtins, settings, nn.Module, nn.Linear, Tensor):
        if "put_there" in vars(owner):
            delattr(owner, "put_there")
    for function in (F.softmax, imported):
        vars(function).pop("put_there", None)
    sys.modules.pop(NAME, None)


def rewritten(model: nn.Module) -> tuple[Any, Tensor]:
    x = torch.randn(4, 4)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    return aug, x


def check_noticed(aug: Any, x: Tensor, change: Callable[[], Any]) -> None:
    """After a change that the model follows a call raises, in a copy as well."""
    before, copied, loaded = aug.original(x), copy.deepcopy(aug), pickle.loads(pickle.dumps(aug.plan))
    assert loaded == aug.plan
    change()
    assert not torch.equal(aug.original(x), before)
    for one in (aug, copied):
        with pytest.raises(AssumptionViolated, match="Call rewrite again"):
            one(x)


@pytest.mark.parametrize("where", PUT)
def test_what_a_user_has_put_there(where: str) -> None:
    asks, put = PUT[where]
    put(1.0)
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: put(2.0))


def test_what_a_user_has_put_on_tensors() -> None:
    Tensor.put_there = 1.0  # type: ignore[attr-defined]
    aug, x = rewritten(OfTensors())
    check_noticed(aug, x, lambda: setattr(Tensor, "put_there", 2.0))


@pytest.mark.parametrize("where", MISSING)
def test_what_is_not_there(where: str) -> None:
    asks, owner = MISSING[where]
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: setattr(owner, "put_there", 2.0))


@pytest.mark.parametrize("where", REPLACED)
def test_a_function_that_is_replaced(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asks, owner, name = REPLACED[where]
    aug, x = rewritten(Asks(asks))
    check_noticed(aug, x, lambda: monkeypatch.setattr(owner, name, lambda _: 9.0))


@pytest.mark.parametrize(
    "where", ["torch", "builtins", "nn.Module", "a closed layer's class", "a module asked for"]
)
def test_compiled_code_notices_what_was_put_there(where: str) -> None:
    asks, put = PUT[where]
    put(1.0)
    aug, x = rewritten(Asks(asks))
    check_noticed_when_compiled(aug, x, lambda _: put(2.0))


def test_constants_of_torch_and_python_are_no_hindrance() -> None:
    aug, x = rewritten(Asks(lambda m: torch.pi * math.pi * float(np.pi) * sys.maxsize**0 * 1.0))
    assert torch.equal(torch.compile(aug, fullgraph=True, backend="eager")(x), aug(x))


# --- what the system says ------------------------------------------------------------------------------------


def lines(folder: pathlib.Path) -> float:
    with open(folder / NAME) as text:
        return float(text.read())


def size_or_one(folder: pathlib.Path) -> float:
    try:
        return 1.0 + os.stat(folder / NAME).st_size
    except OSError:
        return 1.0


def read_or_one(folder: pathlib.Path) -> float:
    try:
        return lines(folder)
    except FileNotFoundError:
        return 1.0


SYSTEM: dict[str, Callable[[pathlib.Path], float]] = {
    "os.path.exists": lambda folder: 1.0 + os.path.exists(folder / NAME),
    "os.path.isfile": lambda folder: 1.0 + os.path.isfile(folder / NAME),
    "Path.exists": lambda folder: 1.0 + (folder / NAME).exists(),
    "Path.is_file": lambda folder: 1.0 + (folder / NAME).is_file(),
    "os.access": lambda folder: 1.0 + os.access(folder / NAME, os.R_OK),
    "os.listdir": lambda folder: 1.0 + len(os.listdir(folder)),
    "os.scandir": lambda folder: 1.0 + len(list(os.scandir(folder))),
    "os.walk": lambda folder: 1.0 + sum(len(files) for _, _, files in os.walk(folder)),
    "glob": lambda folder: 1.0 + len(glob.glob(f"{folder}/*")),
    "Path.glob": lambda folder: 1.0 + len(list(folder.glob("*"))),
    "os.stat that may fail": size_or_one,
    "open that may fail": read_or_one,
}
FILES: dict[str, Callable[[pathlib.Path], float]] = {
    "open": lines,
    "pathlib": lambda folder: float((folder / NAME).read_text()),
    "os.path.getsize": lambda folder: float(os.path.getsize(folder / NAME)),
    "os.path.getmtime": lambda folder: float(os.path.getmtime(folder / NAME) % 7),
    "numpy": lambda folder: float(np.loadtxt(folder / NAME)),
    "torch": lambda folder: float(len(torch.load(folder / f"{NAME}.pt"))),
}
PROCESS: dict[str, tuple[Callable[[Any], float], Callable[[Any], Any]]] = {
    "a variable": (lambda m: 1.0 + bool(os.environ.get(NAME)), lambda m: m.setenv(NAME, "1")),
    "a variable by another name": (lambda m: 1.0 + bool(getenv(NAME)), lambda m: m.setenv(NAME, "1")),
    "a variable of a computed name": (
        lambda m: 1.0 + bool(os.environ.get(f"{m.name}-x")),
        lambda m: m.setenv(f"{NAME}-x", "1"),
    ),
    "a variable in bytes": (
        lambda m: 1.0 + bool(os.environb.get(NAME.encode())),
        lambda m: m.setenv(NAME, "1"),
    ),
    "all variables": (lambda m: 1.0 + (NAME in dict(os.environ)), lambda m: m.setenv(NAME, "1")),
    "how many there are": (lambda m: float(len(os.environ)), lambda m: m.setenv(NAME, "1")),
    "the home": (
        lambda m: float(len(os.path.expanduser("~"))),
        lambda m: m.setenv("HOME", "/a/longer/way/to/it"),
    ),
    "a program": (lambda m: 1.0 + (shutil.which("sh") is None), lambda m: m.setenv("PATH", "/nowhere")),
    "the directory": (lambda m: float(len(os.getcwd())), lambda m: m.chdir("/")),
    "the directory by another name": (lambda m: float(len(getcwd())), lambda m: m.chdir("/")),
    "Path.cwd": (lambda m: float(len(str(pathlib.Path.cwd()))), lambda m: m.chdir("/")),
    "arguments": (
        lambda m: 1.0 + ("--fast" in sys.argv),
        lambda m: m.setattr(sys, "argv", [*sys.argv, "--fast"]),
    ),
    "limits": (lambda m: sys.getrecursionlimit() / 1000, lambda m: sys.setrecursionlimit(1234)),
    "numpy": (lambda m: 1.0 + (np.geterr()["over"] == "raise"), lambda m: np.seterr(over="raise")),
    "garbage collection": (lambda m: 1.0 + gc.isenabled(), lambda m: gc.disable()),
}
MOMENT: dict[str, Callable[[Any], float]] = {
    "time.time": lambda m: 1.0 + (time.time() < 0),
    "datetime.datetime.now": lambda m: 1.0 + (datetime.datetime.now().year > 9000),
    "threading.current_thread": lambda m: 1.0 + (threading.current_thread().name == NAME),
    "multiprocessing.current_process": lambda m: 1.0 + (multiprocessing.current_process().name == NAME),
    "decimal.getcontext": lambda m: 1.0 + (decimal.getcontext().prec > 99),
    "importlib.util.find_spec": lambda m: 1.0 + (importlib.util.find_spec(NAME) is not None),
    "sys.stdout.isatty": lambda m: 1.0 + 0 * sys.stdout.isatty(),
    "sys.gettrace": lambda m: 1.0 + 0 * (sys.gettrace() is None),
    "sys.modules": lambda m: 1.0 + (m.name in sys.modules),
}


@pytest.fixture
def process_as_before() -> Any:
    limit, errors = sys.getrecursionlimit(), np.geterr()
    yield
    sys.setrecursionlimit(limit)
    np.seterr(**errors)
    gc.enable()


@pytest.mark.parametrize("question", SYSTEM)
def test_whether_a_file_is_there(question: str, tmp_path: pathlib.Path) -> None:
    aug, x = rewritten(Asks(lambda m: SYSTEM[question](tmp_path)))
    assert not aug.plan.notes
    check_noticed(aug, x, lambda: (tmp_path / NAME).write_text("7"))
    (tmp_path / NAME).unlink()
    assert torch.equal(aug(x), aug.original(x))


@pytest.mark.parametrize("question", FILES)
def test_what_lies_in_a_file(question: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / NAME).write_text("7")
    torch.save([1.0], tmp_path / f"{NAME}.pt")
    aug, x = rewritten(Asks(lambda m: FILES[question](tmp_path)))
    assert not aug.plan.notes

    def change() -> None:
        (tmp_path / NAME).write_text("7.25")
        torch.save([1.0, 2.0], tmp_path / f"{NAME}.pt")
        os.utime(tmp_path / NAME, (1e9, 1e9 + 1))

    check_noticed(aug, x, change)


def test_that_a_file_is_there_says_nothing_of_what_is_in_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / NAME).write_text("7")
    aug, x = rewritten(Asks(lambda m: 1.0 + os.path.exists(tmp_path / NAME) + (tmp_path / NAME).is_file()))
    (tmp_path / NAME).write_text("another")
    assert torch.equal(aug(x), aug.original(x))


def test_what_lies_in_a_file_that_a_closed_module_reads_is_its_own_matter(tmp_path: pathlib.Path) -> None:
    (tmp_path / NAME).write_text("7")
    asks, x = Asks(lambda m: lines(tmp_path)), torch.randn(4, 4)
    aug = ga.rewrite(nn.Sequential(nn.Linear(4, 4), asks), "0", rate=0.0, example_inputs=x)
    assert not aug.plan.notes
    (tmp_path / NAME).write_text("8")
    assert torch.equal(aug(x), aug.original(x))


@pytest.mark.parametrize("question", PROCESS)
@pytest.mark.usefixtures("process_as_before")
def test_what_the_process_says(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asks, change = PROCESS[question]
    aug, x = rewritten(Asks(asks))
    assert not aug.plan.notes
    check_noticed(aug, x, lambda: change(monkeypatch))


@pytest.mark.parametrize("question", MOMENT)
def test_what_is_said_of_the_moment_is_a_note(question: str) -> None:
    aug, _ = rewritten(Asks(MOMENT[question]))
    assert any("not compared in every call" in note and question in note for note in aug.plan.notes)


def test_a_recording_does_not_show_its_own_trace_function() -> None:
    model = Asks(lambda m: 1.0 if sys.gettrace() is None else 2.0)
    before = sys.gettrace()
    x = torch.randn(4, 4)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert sys.gettrace() is before
    assert torch.equal(aug(x), model(x))


def appends(folder: pathlib.Path) -> float:
    with io.open(folder / "log", "a") as log:  # noqa: UP020 - as older code has it
        log.write("x")
    return 1.0


def of_the_kernel(folder: pathlib.Path) -> float:
    with open("/proc/self/statm") as text:
        return float(bool(text.read()))


@pytest.mark.parametrize("asks", [appends, of_the_kernel])
def test_what_is_written_or_made_up_when_it_is_read_is_a_note(asks: Any, tmp_path: pathlib.Path) -> None:
    if asks is of_the_kernel and not os.path.exists("/proc/self/statm"):
        pytest.skip("there is no such file here")
    aug, x = rewritten(Asks(lambda m: asks(tmp_path)))
    told = [note for note in aug.plan.notes if "test_asked_of_the_system.py line" in note]
    assert len(told) == 1
    assert "asks of the system" in told[0]
    for _ in range(3):
        aug(x)


def counts(folder: pathlib.Path) -> float:
    file = folder / NAME
    seen = float(file.read_text()) if file.exists() else 1.0
    file.write_text(str(seen + 1))
    return seen


def test_a_memory_in_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ga.errors.CaptureError, match="differs from the original"):
        ga.rewrite(Asks(lambda m: counts(tmp_path)), "first", rate=0.0, example_inputs=torch.randn(4, 4))
