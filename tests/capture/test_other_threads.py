"""While a model is looked into, threads that call it wait, and get the model's numbers; others go on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.recording import gate
from graphaug.errors import CaptureError

MODULE_CALL = nn.Module.__call__


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.gain = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(torch.relu(self.body(x))) * self.gain


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(4)]).eval()


@contextlib.contextmanager
def meanwhile(work: Callable[[], Any], threads: int = 2) -> Iterator[list[BaseException]]:
    """Other threads that do something over and over; what they raise."""
    end, raised, done = threading.Event(), [], threading.Semaphore(0)

    def loop() -> None:
        while not end.is_set():
            try:
                work()
            except BaseException as error:
                raised.append(error)
                end.wait(0.01)
            done.release()

    others = [threading.Thread(target=loop) for _ in range(threads)]
    for other in others:
        other.start()
    done.acquire()
    try:
        yield raised
        done.acquire()
    finally:
        end.set()
        for other in others:
            other.join()


def rewritten_and_verified(model: nn.Module, x: Tensor) -> ga.AugmentedModule:
    aug = ga.rewrite(model, at="1", rate=0.5, stop_grad=True, example_inputs=x)
    ga.verify(aug, x)
    return aug


def entered_by_its_children(model: nn.Sequential) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        for child in model:
            x = child(x)
        return x

    return call


WAYS: dict[str, Callable[[nn.Sequential], Callable[[Tensor], Tensor]]] = {
    "itself": lambda model: model,
    "forward": lambda model: model.forward,
    "children": entered_by_its_children,
    "wrapped": lambda model: nn.Sequential(nn.Identity(), model).eval(),
    "shared": lambda model: nn.Sequential(*model).eval(),
    "rewritten": lambda model: ga.rewrite(model, at="2", example_inputs=torch.ones(4, 8)).eval(),
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("way", WAYS)
def test_who_calls_the_model_meanwhile_gets_its_numbers(way: str) -> None:
    model, x = blocks(), torch.randn(4, 8)
    with torch.no_grad():
        want = model(x)
    call = WAYS[way](model)

    def work() -> None:
        with torch.no_grad():
            out = call(x)
        assert type(out) is Tensor
        torch.testing.assert_close(out, want)

    with meanwhile(work) as raised:
        for _ in range(2):
            rewritten_and_verified(model, x)
    assert not raised, raised[0]
    assert not model.training
    assert nn.Module.__call__ is MODULE_CALL


def test_who_trains_another_model_meanwhile_is_not_held_up() -> None:
    x, other = torch.randn(4, 8), blocks().train()
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += gate._gate is not None
        other(x).sum().backward()

    with meanwhile(work) as raised:
        rewritten_and_verified(blocks(), x)
    assert not raised, raised[0]
    assert calls > 2


def test_who_compiles_another_model_meanwhile_may_do_so() -> None:
    x = torch.randn(4, 8)

    def work() -> None:
        torch._dynamo.reset()
        torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), backend="eager", fullgraph=True)(x)

    torch.compile(nn.Linear(8, 8), backend="eager")(x)  # the compiler is imported
    with meanwhile(work, threads=1) as raised:
        for _ in range(3):
            rewritten_and_verified(blocks(), x)
    assert not raised, raised[0]


class Branches(nn.Module):
    """Two branches that threads run."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        grad = torch.is_grad_enabled()  # each thread has its own
        found: dict[nn.Module, Tensor] = {}

        def run(branch: nn.Module) -> None:
            # it is tried with sizes that do not fit
            with torch.set_grad_enabled(grad), contextlib.suppress(RuntimeError):
                found[branch] = branch(x)

        for branch in self.branches:  # one by one: fakes are not made for two threads at once
            thread = threading.Thread(target=run, args=(branch,))
            thread.start()
            thread.join()
        first, second = (found[branch] for branch in self.branches)
        return first + second


def test_threads_that_the_model_waits_for_do_not_wait() -> None:
    model, x = nn.Sequential(Branches(), nn.Linear(8, 8)), torch.randn(4, 8)
    with meanwhile(lambda: None):
        aug = ga.rewrite(model, at="0", rate=0.0, example_inputs=x)
    torch.testing.assert_close(aug(x), model(x))


def test_a_call_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, inside, end = blocks(), torch.randn(4, 8), threading.Event(), threading.Event()
    model[1].register_forward_hook(lambda *_: (inside.set(), end.wait(), None)[-1])
    monkeypatch.setattr(gate, "PATIENCE", 0.1)
    other = threading.Thread(target=model, args=(x,), name="evaluation")
    other.start()
    inside.wait()
    try:
        with pytest.raises(
            CaptureError, match="another thread, 'evaluation', has been in a call of this Sequential"
        ):
            ga.rewrite(model, at="2", example_inputs=x)
    finally:
        end.set()
        other.join()
    assert nn.Module.__call__ is MODULE_CALL


def test_a_call_of_modules_that_others_replaced_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return MODULE_CALL(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", replaced)
    model, x = blocks(), torch.randn(4, 8)
    with meanwhile(lambda: None):
        aug = ga.rewrite(model, at="1", rate=0.0, example_inputs=x)
    assert nn.Module.__call__ is replaced
    seen.clear()
    torch.testing.assert_close(aug(x), model(x))
    assert model[3] in seen
