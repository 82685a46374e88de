"""What opened code asks Python and the system: asked again in every call, or a note in the plan."""

import datetime
import decimal
import gc
import glob
import importlib.util
import io
import multiprocessing
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from os import getcwd, getenv
from typing import Any

import numpy as np
import pytest
import torch
from asking import NAME, Asks, TwoInputs, check_noticed, rewritten
from torch import get_default_dtype, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


def told_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1.0 if id(a) == id(b) else 2.0


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


def test_what_torch_says_to_a_function_of_another_file() -> None:
    aug, x = rewritten(Asks(lambda m: 1.0 + (get_default_dtype() == torch.float64)))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(AssumptionViolated, match=r"torch\.get_default_dtype\(\) == torch\.float32"):
            aug(x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_whether_a_function_of_another_file_tells_inputs_apart() -> None:
    two = TwoInputs(told_apart)
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    aug = ga.rewrite(two, "first", rate=0.0, example_inputs=(x, y))
    assert torch.equal(aug(x, y), two(x, y))
    with pytest.raises(AssumptionViolated):
        aug(x, x)


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
    told = [note for note in aug.plan.notes if re.search(r"asking\.py line \d+", note)]
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
