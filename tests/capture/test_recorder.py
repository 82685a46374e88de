"""What a recorded forward may do: every case against the plain model, or refused by an error that says why."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import features, fingerprint
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import graphaug as ga
from graphaug.capture.state import others_draw
from graphaug.errors import AssumptionViolated, BypassedSite, CaptureError

pytestmark = pytest.mark.few(1)

KEPT: dict[int, Tensor] = {}
ROOT = Path(__file__).resolve().parents[2]


class Net(nn.Module):
    """A layer, a body in Python, a layer."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(4, 4), nn.Linear(4, 4), body

    def forward(self, x: Tensor) -> Any:
        return self.b(self.body(self, self.a(x)))


def made(body: Any, examples: bool = True, at: str = "a") -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Net(body)
    return model, ga.rewrite(model, at, subset=0.0, example_inputs=features() if examples else None)


def same(model: nn.Module, aug: nn.Module, rows: tuple[int, ...] = (6, 3)) -> None:
    for mode in (True, False):
        model.train(mode), aug.train(mode)
        for n in rows:
            torch.testing.assert_close(aug(features(n, seed=n)), model(features(n, seed=n)), rtol=0, atol=0)


# --- questions whose answer leaks -------------------------------------------------------------------

LEAKS: dict[str, Any] = {
    "set of sizes": lambda m, h: h * 2 if h.shape[1] in {4, 16} else h,
    "set of dtypes": lambda m, h: h * 2 if h.dtype in {torch.float32, torch.float64} else h,
    "table": lambda m, h: h * {4: 2.0, 16: 3.0}.get(h.shape[1], 1.0),
    "text": lambda m, h: h * 2 if f"{h.shape[1]}" in {"4"} else h,
    "tuple": lambda m, h: h * 2 if h.shape == (6, 4) else h,
    "device": lambda m, h: h * 2 if h.device.type == "cpu" else h,
    "range": lambda m, h: sum((h * i for i in range(h.shape[1])), h),
    "list": lambda m, h: h + len([0] * h.shape[1]),
    "maximum": lambda m, h: h * max(h.shape[1], 3),
    "finfo": lambda m, h: h.clamp(min=torch.finfo(h.dtype).min),
    "root": lambda m, h: h / h.shape[1] ** 0.5,
    "numpy": lambda m, h: h * np.sqrt(4.0),
    "int": lambda m, h: h * 2 if isinstance(h.shape[0], int) else h,
    "where": lambda m, h: torch.where(h > 0, h, 0.0),
    "pow": lambda m, h: torch.pow(h, 2) + 2**h + (1 - h) / 2 + 1 / (h.abs() + 1),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_asked_of_a_size_is_answered_as_in_the_model(kind: str) -> None:
    model, aug = made(LEAKS[kind])
    same(model, aug, (6,))
    for n in (3, 9):  # with another number of rows it is the model, or raises
        try:
            found = aug.train()(features(n))
        except AssumptionViolated:
            assert kind == "tuple"
        else:
            torch.testing.assert_close(found, model.train()(features(n)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind", ["set of sizes", "set of dtypes", "table", "text", "tuple", "maximum", "root"]
)
def test_without_examples_such_a_question_is_answered_as_well(kind: str) -> None:
    model, aug = made(LEAKS[kind], examples=False)
    same(model, aug, (2, 6, 3) if kind != "tuple" else (2, 3))
    if kind == "tuple":  # of another number of rows the graph does not hold, and the guess is named
        with pytest.raises(AssumptionViolated, match="No example_inputs were given"):
            aug.train()(features(6))


@pytest.mark.parametrize("name", ["is_grad_enabled", "is_autocast_enabled"])
def test_a_mode_that_was_asked_for_is_an_assumption(name: str) -> None:
    arguments = () if name == "is_grad_enabled" else ("cpu",)
    model, aug = made(lambda m, h: h * 2 if getattr(torch, name)(*arguments) else h)
    assert any(name in text for text in aug.plan.assumptions)
    same(model, aug)
    mode = torch.no_grad() if name == "is_grad_enabled" else torch.autocast("cpu", torch.bfloat16)
    with mode, pytest.raises(AssumptionViolated, match=name):
        aug.train()(features())
    with mode:
        assert torch.equal(aug.eval()(features()), model.eval()(features()))


DEVICES: dict[str, Any] = {
    "equal": lambda m, h: h * 2 if h.device.type == "cpu" else h,
    "upper": lambda m, h: h * 2 if h.device.type.upper() == "CPU" else h,
    "end": lambda m, h: h * 2 if h.device.type.endswith("pu") else h,
    "slice": lambda m, h: h * 2 if h.device.type[:2] == "cp" else h,
    "order": lambda m, h: h * 2 if h.device.type < "d" else h,
    "spelled": lambda m, h: h * 2 if repr(h.device.type) == "'cpu'" else h,
}


@pytest.mark.parametrize("kind", DEVICES)
def test_what_is_asked_of_the_type_of_a_device_is_relied_on(kind: str) -> None:
    model, aug = made(DEVICES[kind])
    same(model, aug)
    with pytest.raises(AssumptionViolated, match="device"):
        aug.train().to("meta")(features().to("meta"))


@pytest.mark.parametrize(
    "device",
    [
        lambda h: h.device,
        lambda h: torch.device(h.device),
        lambda h: torch.device(h.device.type),
        lambda h: torch.device(type=h.device.type),
    ],
)
def test_a_device_that_is_made_of_an_inputs_follows_it(device: Callable[[Tensor], torch.device]) -> None:
    model, aug = made(lambda m, h: h + torch.zeros(4, device=device(h)))
    same(model, aug)
    assert aug.train().to("meta")(features().to("meta")).device.type == "meta"


# --- what is made in every call ---------------------------------------------------------------------


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: torch.zeros(1), lambda: torch.tensor([0.0]), lambda: torch.full((1,), 0.0)],
    ids=["zeros", "tensor", "full"],
)
def test_a_tensor_that_opened_code_makes_does_not_accumulate(make: Any, examples: bool) -> None:
    def body(m: Any, h: Tensor) -> Tensor:
        total = make()
        total += h.pow(2).mean()
        return h + total

    model, aug = made(body, examples)
    for _ in range(3):
        out = aug(features())
        torch.testing.assert_close(out, model(features()), rtol=0, atol=0)
        out.sum().backward()


def test_grad_mode_behind_a_block_is_the_callers() -> None:
    def body(m: Any, h: Tensor) -> Tensor:
        with torch.no_grad():
            scale = h.abs().mean(1, keepdim=True)
        with torch.enable_grad():
            h = h * 2
        return h / (scale + 1)

    model, aug = made(body)
    same(model, aug)
    with torch.no_grad():
        assert aug(features()).requires_grad == model(features()).requires_grad
        assert not torch.is_grad_enabled()
    assert aug(features()).requires_grad


# --- the model's own state --------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.p, self.scale, self.times = nn.Linear(4, 4), 0.5, 1.0, 1

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(self.l(x), self.p, self.training) * self.scale
        for _ in range(self.times):
            h = h + 1
        return h


def test_numbers_of_opened_modules_are_read_in_every_call_or_checked() -> None:
    model, x = nn.Sequential(Scaled(), nn.Linear(4, 4)), features()
    aug = ga.rewrite(model, "0.l", subset=0.0, example_inputs=x)
    model[0].p, model[0].scale = 0.0, 3.0
    same(model, aug)
    model[0].times = 3
    with pytest.raises(AssumptionViolated, match=r"0\.times == 1, and now it is 3"):
        aug.train()(x)
    same(model.eval(), aug.eval(), ()), torch.testing.assert_close(aug.eval()(x), model.eval()(x))


def test_a_flag_of_a_single_module_is_noticed() -> None:
    model, x = nn.Sequential(Scaled(), nn.Linear(4, 4)), features()
    aug = ga.rewrite(model, "0.l", subset=0.0, example_inputs=x).train()
    model[0].eval()
    with pytest.raises(AssumptionViolated, match=r"0\.training == True"):
        aug(x)


class Momentum(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.query, self.key, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how
        self.key.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            for q, k in zip(self.query.parameters(), self.key.parameters(), strict=True):
                if self.how == "data":
                    k.data = k.data * 0.5 + q.data * 0.5
                else:
                    k.mul_(0.5).add_(q, alpha=0.5)
            keys = self.key(b)
        return self.query(a) @ keys.T


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize("how", ["data", "in place"])
def test_a_momentum_update_is_in_the_graph_or_refused(how: str, examples: bool) -> None:
    net, x = Momentum(how), features()
    plain, before = copy.deepcopy(net), fingerprint(net)
    call = functools.partial(
        ga.rewrite, net, "query", subset=0.0, example_inputs=(x, x) if examples else None
    )
    if how == "data":
        with pytest.raises(CaptureError, match=r"key\.weight"):
            call()
        assert fingerprint(net)["bytes"] == before["bytes"]
        return
    aug = call()
    assert fingerprint(net)["bytes"] == before["bytes"]
    for _ in range(3):
        torch.testing.assert_close(aug(x, x), plain(x, x), rtol=0, atol=0)


# --- hooks ------------------------------------------------------------------------------------------


def hooked() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4))


@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_hooks_of_an_opened_module_are_called_as_they_are_by_then(kind: str) -> None:
    model, x, seen = hooked(), features(), []
    if kind == "forward":
        handle = model[0].register_forward_hook(lambda m, args, out: seen.append(1) or out * 2)
    else:
        handle = model[0].register_forward_pre_hook(lambda m, args: seen.append(1) or (args[0] * 2,))
    aug = ga.rewrite(model, "0.0", subset=0.0, example_inputs=x, allow_bypass=True).eval()
    seen.clear()  # of the runs that compare the graph with the model
    assert torch.equal(aug(x), model.eval()(x))
    assert len(seen) == 2
    handle.remove()
    assert torch.equal(aug(x), model(x))


def test_a_hook_that_is_registered_later_is_noticed() -> None:
    model, x = hooked(), features()
    aug = ga.rewrite(model, "0.0", subset=0.0, example_inputs=x).train()
    model[0].register_forward_hook(lambda m, args, out: out * 2)
    with pytest.raises(AssumptionViolated, match="a hook was registered on '0'"):
        aug(x)
    assert torch.equal(aug.eval()(x), model.eval()(x))


@pytest.mark.parametrize("examples", [True, False])
def test_a_backward_hook_of_an_opened_module_is_refused(examples: bool) -> None:
    model = hooked()
    model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match="module '0', which has to be opened, has"):
        ga.rewrite(model, "0.0", example_inputs=features() if examples else None)


# --- what is kept elsewhere -------------------------------------------------------------------------


@functools.cache
def cached(n: int) -> Tensor:
    return torch.arange(n).float()


class Holder:
    positions: Any = None


def of_module(m: Any, n: int) -> Tensor:
    if n not in KEPT:
        KEPT[n] = torch.arange(n).float()
    return KEPT[n]


def of_default(m: Any, n: int, kept: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return kept.setdefault(n, torch.arange(n).float())


def of_object(m: Any, n: int) -> Tensor:
    if m.holder.positions is None:
        m.holder.positions = torch.arange(n).float()
    return m.holder.positions


class Tabled(nn.Module):
    def __init__(self, table: Any) -> None:
        super().__init__()
        self.a, self.table, self.holder = nn.Linear(4, 4), table, Holder()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.table(self, int(x.shape[1]))


@pytest.mark.parametrize("at", ["1", "0.a"], ids=["closed", "opened"])
@pytest.mark.parametrize(
    "table",
    [lambda m, n: cached(n), of_module, of_default, of_object],
    ids=["cache", "module", "default", "object"],
)
def test_tables_keep_no_fake_tensor(table: Any, at: str) -> None:
    KEPT.clear()
    cached.cache_clear()
    model, x = nn.Sequential(Tabled(table), nn.Linear(4, 4)).eval(), features()
    aug = ga.rewrite(model, at, subset=0.0, example_inputs=x).eval()
    assert type(model(x)) is Tensor
    assert torch.equal(aug(x), model(x))


@pytest.mark.parametrize("generator", [random.Random(0), np.random.default_rng(0)], ids=["random", "numpy"])
def test_generators_of_the_models_own_are_refused_and_left_alone(generator: Any) -> None:
    before = copy.deepcopy(generator).random()
    model = Net(lambda m, h: h * float(m.generator.random()))
    model.generator = generator
    with pytest.raises(CaptureError, match="draws random numbers"):
        ga.rewrite(model, "a", example_inputs=features())
    assert copy.deepcopy(generator).random() == before


def test_seeded_noise_is_refused() -> None:
    def body(m: Any, h: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return h @ torch.randn(4, 4)

    with pytest.raises(CaptureError, match="seeds torch's generator"):
        made(body)


# --- structure --------------------------------------------------------------------------------------


def test_a_constant_before_a_tensor_in_the_signature() -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, flag: bool = False, mask: Any = None) -> Tensor:
            h = self.a(x)
            return h if mask is None else h * mask

    model, x, mask = Flagged(), features(), features(seed=1)
    for example in ({"x": x, "flag": False, "mask": mask}, (x, False, mask)):
        aug = ga.rewrite(model, "a", subset=0.0, example_inputs=example)
        assert torch.equal(aug(x, False, mask), model(x, False, mask))


def test_a_tuple_that_is_handed_on_whole_is_a_bypass() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.a(x) * 2

    class Both(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    with pytest.raises(BypassedSite):
        ga.rewrite(nn.Sequential(Pair(), Both()), "0", stop_grad=True, example_inputs=features())


def test_numbers_that_a_closed_module_returns_are_followed() -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x * 2, x.shape[0]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.part = nn.Linear(4, 4), Sized()

        def forward(self, x: Tensor) -> Tensor:
            h, rows = self.part(self.a(x))
            return h.reshape(1, rows, 4)[0] / rows

    model = Whole()
    same(model, ga.rewrite(model, "a", subset=0.0, example_inputs=features()), (2, 6, 9))


def test_a_tensor_hook_in_a_forward_is_called_in_every_step() -> None:
    kept: list[Tensor] = []

    def body(m: Any, h: Tensor) -> Tensor:
        h.register_hook(kept.append)
        return h

    _, aug = made(body)
    kept.clear()
    for step in (1, 2):
        aug(features()).sum().backward()
        assert len(kept) == step


# --- threads and processes --------------------------------------------------------------------------


@pytest.mark.long
def test_two_threads_may_rewrite_at_once() -> None:
    errors: list[Exception] = []

    def work() -> None:
        for _ in range(3):
            try:
                model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
                aug = ga.rewrite(model, "0", subset=0.0, example_inputs=features())
                assert torch.equal(aug(features()), model(features()))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_a_thread_that_draws_is_no_fault_of_the_model(pause: float) -> None:
    assert not others_draw()
    end, said = threading.Event(), ""

    def draw() -> None:
        while not end.is_set():
            torch.randn(10)
            if pause:
                end.wait(pause)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert any(others_draw() for _ in range(40))
        made(lambda m, h: nn.functional.dropout(h, 0.5))
    except CaptureError as error:
        said = str(error)
    finally:
        end.set()
        thread.join()
    assert not said or "another thread draws random numbers" in said


CALLS = {
    "function": "Reverse.apply(h)",
    "function bound earlier": "reverse(h)",
    "scripted": "scripted(h)",
    "vmap": "torch.vmap(lambda row: row * 2)(h)",
    "fork": "torch.jit.wait(torch.jit.fork(lambda z: z * 2, h))",
    "dlpack": "torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach())) + h",
    "deepcopy": "copy.deepcopy(h)",
    "constructor": "torch.Tensor(h)",
    "asarray": "torch.asarray(h)",
    "numpy": "torch.from_numpy(h.detach().numpy()) + h",
}
SCRIPT = """
import copy, sys, torch
from torch import nn
import graphaug as ga

class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context, h):
        return h.clone()
    @staticmethod
    def backward(context, g):
        return -g

reverse = Reverse.apply

@torch.jit.script
def scripted(h: torch.Tensor):
    return h * 2

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        h = self.a(x)
        return self.b({call})

model, x = Net(), torch.randn(6, 4)
try:
    aug = ga.rewrite(model, at="a", subset=0.0, example_inputs=x)
except ga.GraphaugError:
    sys.exit(0)
grads = []
for m in (model, aug):
    model.zero_grad(set_to_none=True)
    out = m(x)
    out.square().sum().backward()
    grads.append([out.detach()] + [p.grad for p in model.parameters()])  # asarray detaches in torch 2.11
same = lambda a, b: a is b if a is None or b is None else torch.equal(a, b)
sys.exit(0 if all(map(same, *grads)) else 1)
"""


@pytest.mark.parametrize("kind", CALLS)
def test_no_call_ends_the_process(kind: str, tmp_path: Path) -> None:
    """Equal in values and gradients, or refused; in a process of its own, whose exit code tells."""
    script = tmp_path / "case.py"  # scripted functions need their source
    script.write_text(SCRIPT.replace("{call}", CALLS[kind]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-500:]


COPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a value": lambda h, two: copy.deepcopy(h.detach()) + h,
    "a constant": lambda h, two: copy.deepcopy(two) * h,
    "shallow": lambda h, two: copy.copy(h) * two,
    "in containers": lambda h, two: copy.deepcopy([h.detach(), {"two": two}])[0] + h,
    "a parameter": lambda h, two: copy.deepcopy(nn.Parameter(h.detach())) + h,
    "a size": lambda h, two: h * copy.deepcopy(h.shape)[0],
    "pickled": lambda h, two: pickle.loads(pickle.dumps(h.detach())) + h,
    "its attributes": lambda h, two: h * len(copy.deepcopy(vars(h.detach())).keys() & {"mine"}),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_made_in_closed_code_copy_no_weak_reference_to_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that torch did not count has memory counted down after it was given back: the process ends, much later."""
    copied = []
    monkeypatch.setattr(StorageWeakRef, "__reduce_ex__", lambda self, protocol: copied.append(self))

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            two = torch.tensor(2.0)  # a constant, to whose memory a fake mode keeps a weak reference
            return COPIES[kind](self.inner(x) * two, two)

    model = nn.Sequential(Copies(), nn.Linear(4, 3))
    same(model, ga.rewrite(model, "0", subset=0.0, example_inputs=features()), (2, 6, 9))
    assert not copied


OUTSIDE = """
import torch
from torch import nn


def pooled(x):  # a number out of the data, which only a closed function may ask for
    return x[: int(x.abs().sum()) * 0 + len(x)] * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(pooled(x))
"""


@pytest.mark.parametrize("name", ["a page of documentation", "__main__", __name__])
def test_functions_of_code_that_no_module_holds_are_seen(name: str) -> None:
    scope: dict[str, Any] = {"__name__": name}
    exec(OUTSIDE, scope)
    model, x = scope["Net"](), torch.randn(3, 4)
    before = scope["pooled"]
    aug = ga.rewrite(model, "blocks.0", example_inputs=x)
    assert "pooled" in {getattr(node.target, "__name__", "") for node in aug.graph.nodes}
    assert scope["pooled"] is before
    assert torch.equal(aug.eval()(x), model.eval()(x))


def test_a_transform_of_torch_func_is_named() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.vmap(lambda row: row * 2)(self.inner(x)))

    with pytest.raises(CaptureError, match=r"test_recorder\.py line \d+.*torch\.func \(vmap, grad\)"):
        ga.rewrite(Rows(), "inner", example_inputs=features())


OPERATORS = [
    *("h + 2", "2 + h", "h + h", "h - 2", "2 - h", "h * 2", "2 * h", "h / 2", "2 / h", "h % 2"),
    *("h + h.detach() // 2", "h + 2 // h.detach()"),
    *("h + 2 % (h.detach().abs() + 1)", "h ** 2", "2 ** h", "h.abs() ** h", "h.abs() ** 0.5"),
    *("-h", "+h", "abs(h)", "h @ h.mT @ h"),
    *("h * (h > 0)", "h * (h >= 0)", "h * (h < 0)", "h * (0 <= h)", "h * (h == h)", "h * (h != 0)", "h * ~(h > 0)"),
    *("h * ((h > 0) & (h < 1))", "h * ((h > 0) | (h < -1))", "h * ((h > 0) ^ (h < 1))", "h * True"),
    *("h * (h.long() << 1)", "h * (h.long() >> 1)", "h * (1 << h.long().abs())", "h[:, 1:] + h[..., :-1]", "h[0] + h"),
]  # fmt: skip
IN_PLACE = ["+= 2", "-= 2", "*= 2", "/= 2", "%= 2", "**= 2", "+= h", "*= h.detach().clone()"]


class Operates(nn.Module):
    def __init__(self, code: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)
        scope: dict[str, Any] = {}
        exec(f"def operate(h):\n    {code}", scope)
        self.operate = scope["operate"]

    def forward(self, x: Tensor) -> Tensor:
        h = self.operate(self.inner(x))
        return self.outer(torch.nn.functional.pad(h, (0, 4 - h.shape[-1])))


@pytest.mark.parametrize(
    "code", [*(f"return {o}" for o in OPERATORS), *(f"h = h + 0; h {o}; return h" for o in IN_PLACE)]
)
def test_every_operator_is_recorded(code: str) -> None:
    torch.manual_seed(0)
    model = Operates(code)
    aug = ga.rewrite(model, "inner", rate=0.0, example_inputs=features())
    for rows in (6, 9):
        x = torch.rand(rows, 4)
        found, expected = aug(x), model(x)
        assert torch.equal(found, expected)
        assert bool(found.isfinite().all())
        grads = [torch.autograd.grad(out.sum(), model.inner.weight)[0] for out in (found, expected)]
        assert torch.equal(*grads)


class Table(nn.Module):
    """Makes a tensor of an array or a list of its own."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.inner, self.outer, self.make = nn.Linear(4, 4), nn.Linear(4, 2), make
        self.array, self.list = np.ones(4, np.float32), [1.0, 2.0, 3.0, 4.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x) * self.make(self))


TABLES = {
    "from_numpy": lambda m: torch.from_numpy(m.array),
    "as_tensor": lambda m: torch.as_tensor(m.array),
    "tensor of an array": lambda m: torch.tensor(m.array),
    "tensor of a list": lambda m: torch.tensor(m.list),
    "of the moment": lambda m: torch.from_numpy(np.arange(4, dtype=np.float32)),
    "new": lambda m: m.inner.bias.new(m.inner.bias.shape).zero_() + m.inner.bias.new([2.0]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tensors_of_arrays_and_lists_are_current_or_refused(name: str) -> None:
    model, x = Table(TABLES[name]), features()
    aug = ga.rewrite(model, "inner", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    model.array *= 3
    model.list[0] = 9.0
    with contextlib.suppress(AssumptionViolated):
        assert torch.equal(aug(x), model(x))


def test_old_constructors_are_named() -> None:
    for make in (lambda m: torch.Tensor(m.list), lambda m: torch.FloatTensor([2.0])):
        with pytest.raises(CaptureError, match=r"test_recorder\.py line \d+\).*Write torch\.tensor"):
            ga.rewrite(Table(make), "inner", example_inputs=features())


def doubling() -> type[torch.autograd.Function]:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(context, h):
            return h * 2

        @staticmethod
        def backward(context, g):
            return g * 2

    return Double


class Doubles(nn.Module):
    """Uses an autograd function that is made once, or in every call."""

    def __init__(self, once: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.double = doubling() if once else None

    def forward(self, x):
        return self.b((self.double or doubling()).apply(self.a(x)))


def test_an_autograd_function_that_is_made_in_every_call_is_refused_by_name() -> None:
    x = torch.randn(6, 4)
    model = Doubles(once=True)
    assert torch.equal(ga.rewrite(model, at="a", rate=0.0, example_inputs=x)(x), model(x))
    with pytest.raises(
        ga.GraphaugError, match=r"autograd function in every call \(Double\).*outside of the forward"
    ):
        ga.rewrite(Doubles(once=False), at="a", rate=0.0, example_inputs=x)
