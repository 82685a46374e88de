"""Autocast regions of opened code. Oracle: the plain model with a forward hook: values, gradients, modes afterwards."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.regions import Modes
from graphaug.errors import AssumptionViolated, CaptureError

COARSE = torch.bfloat16


class Net(nn.Module):
    """Three layers; the second runs in a region, or what ``region`` makes of it."""

    def __init__(self, region: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head, self.region, self.low = nn.Linear(8, 2), region, True

    @torch.autocast("cpu", enabled=False)
    def in_full(self, h: Tensor) -> Tensor:
        return self.third(self.second(h.float()))

    @torch.autocast("cpu", COARSE)
    def in_half(self, h: Tensor) -> Tensor:
        return self.third(self.second(h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.region(self, self.first(x).relu())
        return self.head(h.tanh().float())


def off(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.third(m.second(h.float()))


def half(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=COARSE):
        h = m.second(h)
    return m.third(h.float())


def left_open(m: Any, h: Tensor) -> Tensor:
    """Its dtype, and whether casts are kept, are the caller's."""
    with torch.autocast("cpu"):
        return m.third(m.second(h))


def of_the_tensor(m: Any, h: Tensor) -> Tensor:
    with torch.autocast(device_type=h.device.type, dtype=torch.float16, enabled=m.low, cache_enabled=False):
        return m.third(m.second(h))


def of_another_device(m: Any, h: Tensor) -> Tensor:
    with torch.amp.autocast("cuda", enabled=False), torch.autocast(h.device.type, enabled=False):
        return m.third(m.second(h.float()))


def by_a_decorator(m: Any, h: Tensor) -> Tensor:
    return m.in_full(h)


def by_another_decorator(m: Any, h: Tensor) -> Tensor:
    return m.in_half(h)


def nested(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", COARSE):
        h = m.second(h)
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            bias = m.first.bias.mean() + h.float().mean()
        return m.third(h) + bias.to(h.dtype)


def after_an_error(m: Any, h: Tensor) -> Tensor:
    with contextlib.suppress(KeyError), torch.autocast("cpu", COARSE):
        h = m.second(h)
        raise KeyError
    return m.third(h.float())


def asking_inside(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        h = h.float() if not torch.is_autocast_enabled("cpu") else h
        return m.third(m.second(h))


REGIONS = [
    *(off, half, left_open, of_the_tensor, of_another_device, by_a_decorator, by_another_decorator, nested),
    *(after_an_error, asking_inside),
]
SOME = [off, half, nested]

CALLERS: dict[str, Callable[[], Any]] = {
    "none": contextlib.nullcontext,
    "bfloat16": lambda: torch.autocast("cpu", COARSE),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "off": lambda: torch.autocast("cpu", torch.float16, enabled=False),
}


def smaller(h: Tensor) -> Tensor:
    return h * 0.5


def hooked(model: nn.Module, at: str, rows: Tensor, stop: bool) -> None:
    """Let a forward hook do what a site does to the given rows."""

    def change(_: nn.Module, args: Any, h: Tensor) -> Tensor:
        changed = smaller(h).detach() if stop else smaller(h)
        return torch.where(rows[:, None], changed, h)

    model.get_submodule(at).register_forward_hook(change)


@contextlib.contextmanager
def modes_as_before() -> Iterator[None]:
    before = Modes.here()
    yield
    assert Modes.here() == before


def made(region: Callable[..., Tensor], at: str, **options: Any) -> tuple[nn.Module, nn.Module, Any]:
    """The rewritten model, a copy of what it was, and its inputs by the number of rows."""
    torch.manual_seed(0)
    model = Net(region)
    plain, x = copy.deepcopy(model), torch.randn(6, 5)
    options = {"subset": 0.5, "transform": smaller, "allow_bypass": True, **options}
    return ga.rewrite(model, at=at, example_inputs=x, **options), plain, lambda n: torch.randn(n, 5)


def check(aug: Any, plain: nn.Module, x: Tensor, at: str, *, stop: bool = False, run: Any = None) -> None:
    """One step, and its oracle's, in value and gradient: bit by bit where the whole batch runs at once."""
    exact = aug.plan.backward == "dense" and run is None
    torch.manual_seed(1)
    out = aug(x)
    rows = aug.drawn[at].rows
    if run is not None:  # with the same draws
        torch.manual_seed(1)
        with torch._inductor.config.patch(fallback_random=True):
            out = run(x)
    plain = copy.deepcopy(plain)
    hooked(plain, at, rows, stop)
    expected = plain(x)
    assert out.dtype == expected.dtype
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out, expected, **near)
    for model, value in ((aug, out), (plain, expected)):
        model.zero_grad()
        value.float().square().sum().backward()
    for (name, p), q in zip(aug.original.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, **near)


@pytest.mark.few(8)
@pytest.mark.parametrize("at", ["first", "second", "third"])
@pytest.mark.parametrize("region", REGIONS, ids=lambda f: f.__name__)
def test_a_step_is_the_models_whatever_the_caller_has(region: Any, at: str) -> None:
    aug, plain, inputs = made(region, at)
    for around in CALLERS.values():
        with around(), modes_as_before():
            for rows in (6, 9):
                check(aug.train(), plain.train(), inputs(rows), at)
            x = inputs(4)
            with modes_as_before():
                assert torch.equal(aug.eval()(x), plain.eval()(x))
                with aug.only_the_graph():
                    assert torch.equal(aug(x), plain(x))


@pytest.mark.few(8)
@pytest.mark.parametrize("at", ["first", "second", "third"])
@pytest.mark.parametrize("region", REGIONS, ids=lambda f: f.__name__)
def test_a_sparse_step_has_the_region_in_all_its_parts(region: Any, at: str) -> None:
    if region is nested:
        aug, *_ = made(region, at, stop_grad=True)
        assert "switches gradients off" in str(aug.plan)
        return
    aug, plain, inputs = made(region, at, stop_grad=True, backward="sparse")
    for around in CALLERS.values():
        with around(), modes_as_before():
            for rows in (6, 9):
                check(aug, plain, inputs(rows), at, stop=True)


@pytest.mark.parametrize("at", ["second", "first"])
def test_what_the_other_side_of_the_cut_is_on_tells_the_region_behind_it(at: str) -> None:
    def apart(m: Any, h: Tensor) -> Tensor:
        kind = h.device.type
        h = m.second(h)
        with torch.autocast(kind, COARSE):
            return m.third(h)

    aug, plain, inputs = made(apart, at, stop_grad=True, backward="sparse")
    for around in CALLERS.values():
        with around(), modes_as_before():
            check(aug, plain, inputs(9), at, stop=True)


@pytest.mark.few(3)
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("region", SOME, ids=lambda f: f.__name__)
def test_compiled_it_is_the_same(region: Any, backend: str, stop: bool) -> None:
    torch._dynamo.reset()
    aug, plain, inputs = made(region, "second", stop_grad=stop)
    run = torch.compile(aug, fullgraph=True, backend=backend)
    for around in (CALLERS["none"], CALLERS["bfloat16"]):
        with around(), modes_as_before():
            for rows in (6, 9):
                check(aug.train(), plain.train(), inputs(rows), "second", stop=stop, run=run)
            x = inputs(5)
            torch.testing.assert_close(
                torch.compile(aug.eval(), fullgraph=True, backend=backend)(x), plain(x)
            )


@pytest.mark.long
def test_inductor_keeps_it() -> None:
    torch._dynamo.reset()
    aug, plain, inputs = made(half, "second", stop_grad=True, backward="sparse")
    for around in (CALLERS["none"], CALLERS["bfloat16"]):
        with around(), modes_as_before():
            check(aug, plain, inputs(6), "second", stop=True, run=torch.compile(aug, fullgraph=True))


@pytest.mark.parametrize("region", SOME, ids=lambda f: f.__name__)
def test_a_copy_and_a_pickled_one_keep_it(region: Any) -> None:
    aug, plain, inputs = made(region, "second", stop_grad=True)
    for other in (copy.copy(aug), copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        check(other, plain, inputs(7), "second", stop=True)


@pytest.mark.parametrize("how", ["training", "eval", "compiled"])
def test_an_error_inside_leaves_the_callers_modes(how: str) -> None:
    def asks(m: Any, h: Tensor) -> Tensor:
        with torch.autocast("cpu", COARSE), torch.no_grad():
            h = m.second(h) if h.dtype == torch.float32 else m.second(m.third(h))
        return h.float()

    torch._dynamo.reset()
    model = Net(asks)
    plain, x = copy.deepcopy(model), torch.randn(6, 5)
    aug = ga.rewrite(model, at="head", example_inputs=x).train(how == "training")
    run = torch.compile(aug, fullgraph=True, backend="eager") if how == "compiled" else aug
    with torch.autocast("cpu", torch.float16), modes_as_before():  # of which h is by then
        if how == "training":
            with pytest.raises(AssumptionViolated, match="dtype"):
                run(x)
        else:  # the original, from its beginning
            assert torch.equal(run(x), plain(x))
    assert not torch.is_autocast_enabled("cpu")


def test_weights_are_cast_as_often_as_in_the_model() -> None:
    model = Net(half)
    plain, x = copy.deepcopy(model), torch.randn(6, 5)
    aug = ga.rewrite(model, at="second", subset=0.0, example_inputs=x)
    for around in (CALLERS["bfloat16"], CALLERS["none"]):
        outputs = []
        for m in (aug, plain):
            with around():
                before = m(x)
                with torch.no_grad():
                    m.get_submodule("second").weight.add_(1)  # a cast that is kept does not see it
                outputs.append((before, m(x)))
        for a, b in zip(*outputs, strict=True):
            assert torch.equal(a, b)
        kept = torch.equal(*outputs[0])
        assert kept == (around is CALLERS["bfloat16"])


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.autocast("cpu", COARSE):
            h = self.second(self.norm(self.first.weight.T.mean() + h))
            h = self.second(h)
        return self.head(h.float())


def test_two_streams_share_the_region_and_the_statistics_in_it() -> None:
    torch.manual_seed(0)
    model = Normed()
    dense, x = copy.deepcopy(model), torch.randn(8, 5)
    options = {"at": "second@1", "stop_grad": True, "transform": smaller, "example_inputs": x}
    aug = ga.rewrite(model, backward="sparse", **options)
    whole = ga.rewrite(dense, backward="dense", **options)
    assert "two streams" in str(aug.plan)
    for around in CALLERS.values():
        with around(), modes_as_before():
            found = []
            for each in (aug, whole):
                torch.manual_seed(1)
                found.append(each(x))
            torch.testing.assert_close(*found, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("region", SOME, ids=lambda f: f.__name__)
def test_taps_and_views_have_it(region: Any) -> None:
    model, x = Net(region), torch.randn(6, 5)
    plain, seen = copy.deepcopy(model), {}
    for name in ("second", "third"):
        plain.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    tapped = ga.tap(model, ["second"], example_inputs=x)
    two = ga.rewrite(
        copy.deepcopy(model), at="second", views=2, subset=0.0, allow_bypass=True, example_inputs=x
    )
    for around in CALLERS.values():
        with around(), modes_as_before():
            expected = plain(x)
            found = tapped(x)["second"]
            assert found.dtype == seen["second"].dtype
            assert torch.equal(found, seen["second"])
            torch.testing.assert_close(two(x), torch.cat([expected, expected]), rtol=2e-2, atol=2e-2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.autocast("cpu", COARSE):
            h = h + self.branch(h)
        return self.head(h)


def test_skipped_rows_have_it() -> None:
    model, x = Residual(), torch.randn(10, 5)
    plain = copy.deepcopy(model)
    skipped = ga.skip_rows(model, "branch", 0.5, example_inputs=x)

    def masked(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        kept = skipped.skip_rows.kept
        return torch.zeros_like(out).index_copy(0, kept, out[kept] * (len(x) / len(kept)))

    plain.branch.register_forward_hook(masked)
    for around in CALLERS.values():
        with around(), modes_as_before():
            torch.testing.assert_close(skipped(x), plain(x), rtol=2e-2, atol=2e-2)


def test_verify_and_the_row_proof_pass_through_it() -> None:
    aug, _, inputs = made(half, "second", stop_grad=True)
    assert "rows proved independent" in str(aug.plan)
    ga.verify(aug, inputs(8))


def test_another_tracer_keeps_it() -> None:
    model, x = Net(nested), torch.randn(6, 5)
    aug = ga.rewrite(model, at="second", allow_bypass=True, subset=0.0, example_inputs=x)
    for mode in (True, False):
        traced = torch.fx.symbolic_trace(aug.train(mode))
        assert any(node.target is torch.is_grad_enabled for node in traced.graph.nodes)
        for around in CALLERS.values():
            with around(), modes_as_before():
                assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("region", [off, half])
def test_an_export_keeps_it(region: Any) -> None:
    model, x = Net(region), torch.randn(6, 5)
    aug = ga.rewrite(model, at="second", example_inputs=x).eval()
    found = torch.export.export(aug, (x,)).module()(x)
    assert found.dtype is model.eval()(x).dtype
    torch.testing.assert_close(found, model(x))


maybe_autocast: Any = None  # transformers', as its models' files have it


class Rotary(nn.Module):
    """As models of transformers have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.register_buffer("frequencies", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        kind = h.device.type if isinstance(h.device.type, str) and h.device.type != "mps" else "cpu"
        with maybe_autocast(device_type=kind, enabled=False):
            table = (self.frequencies[:, None].float() @ torch.ones(1, 3, device=h.device)).cos()
        return self.head(h * table[:, 0].to(h.dtype))


@pytest.mark.parametrize("stop", [False, True])
def test_what_opens_a_region_where_one_is_open_is_the_region_in_every_call(
    stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("transformers.utils.generic")
    monkeypatch.setattr(sys.modules[__name__], "maybe_autocast", library.maybe_autocast)
    model, x = Rotary(), torch.randn(6, 5)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, at="first", stop_grad=stop, transform=smaller, example_inputs=x)
    for around in CALLERS.values():
        with around(), modes_as_before():
            check(aug.train(), plain, x, "first", stop=stop)
            assert torch.equal(aug.eval()(x), plain(x))


# --- what cannot be kept ------------------------------------------------------------------------------


def set_plainly(m: Any, h: Tensor) -> Tensor:
    torch.set_autocast_enabled("cpu", True)
    h = m.second(h)
    torch.set_autocast_enabled("cpu", False)
    return m.third(h.float())


def not_left(m: Any, h: Tensor) -> Tensor:
    torch.autocast("cpu", COARSE).__enter__()
    return m.third(m.second(h))


def crossing(m: Any, h: Tensor) -> Tensor:
    outer = torch.autocast("cpu", COARSE)
    outer.__enter__()
    inner = torch.autocast("cuda", enabled=False)
    inner.__enter__()
    h = m.third(m.second(h))
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    return h


def made_outside(m: Any, h: Tensor) -> Tensor:
    region = torch.autocast("cpu")
    with torch.autocast("cpu", enabled=False), region:
        return m.third(m.second(h.float()))


def region_for(h: Tensor) -> Any:
    return torch.autocast(h.device.type)


def from_a_function(m: Any, h: Tensor) -> Tensor:
    with region_for(h):
        return m.third(m.second(h))


REFUSED = {
    from_a_function: r"gets an autocast region from a function that it gives a tensor \(region_for\) .*line \d+",
    set_plainly: r"sets autocast by itself .*test_autocast_regions.py line \d+.*write `with torch.autocast",
    not_left: "enters an autocast region and does not leave it",
    crossing: r"leaves an autocast region that is not the innermost one .*line \d+",
    made_outside: r"makes an autocast region outside of another one, .*line \d+.*where it is entered",
}


@pytest.mark.parametrize("region", REFUSED, ids=lambda f: f.__name__)
def test_what_is_no_region_is_refused_with_a_way_on(region: Any) -> None:
    with modes_as_before(), pytest.raises(CaptureError, match=REFUSED[region]):
        ga.rewrite(Net(region), at="second", example_inputs=torch.randn(6, 5))
    assert not torch.is_autocast_enabled("cpu")
