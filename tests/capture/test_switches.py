"""Switches of torch that a forward sets: a graph does not keep them, and closed code would compute otherwise.

Oracle: how the switches are set, as a closed module sees them in the model itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.backends.cuda import flash_sdp_enabled
from torch.distributed import get_rank, is_initialized
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import graphaug as ga
from graphaug.capture.recording.opened.asked_modes import ASKED
from graphaug.capture.switches import _SWITCHES, switches
from graphaug.errors import AssumptionViolated, CaptureError
from graphaug.torch_private import settable_backends

pytestmark = pytest.mark.few(8)

Around = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def put(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    with settable_backends():
        write(value)
    try:
        yield
    finally:
        with settable_backends():
            write(before)


def attribute(owner: Any, name: str, value: Any) -> Around:
    return lambda: put(lambda: getattr(owner, name), lambda v: setattr(owner, name, v), value)


REGIONS: dict[str, Around] = {
    "cudnn.enabled": lambda: torch.backends.cudnn.flags(enabled=False),
    "cudnn.deterministic": attribute(torch.backends.cudnn, "deterministic", True),
    "mkldnn.enabled": attribute(torch.backends.mkldnn, "enabled", False),
    "sdpa_kernel": lambda: sdpa_kernel([SDPBackend.MATH]),
    "set_detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "use_deterministic_algorithms": lambda: put(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "set_default_dtype": lambda: put(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "set_float32_matmul_precision": lambda: put(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"
    ),
    "set_fastpath_enabled": lambda: put(
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False
    ),
    "allow_fp16_reduced": attribute(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False
    ),
    "default device": lambda: torch.device("meta"),
}
SEEN: list[tuple[Any, ...]] = []


class Looks(nn.Module):
    """A closed module that notes the switches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(switches())
        return self.inner(x)


class InRegion(nn.Module):
    def __init__(self, around: Around) -> None:
        super().__init__()
        self.first, self.looks, self.last, self.around = nn.Linear(8, 8), Looks(), nn.Linear(8, 3), around

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with self.around():
            h = self.looks(h)
        return self.last(h)


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_of_opened_code_is_refused_by_its_name(name: str) -> None:
    before = switches()
    with pytest.raises(CaptureError, match=rf"sets .*{name}.*test_switches\.py line \d+"):
        ga.rewrite(InRegion(REGIONS[name]), "last", example_inputs=torch.randn(4, 8))
    assert switches() == before


@pytest.mark.parametrize("name", [name for name in REGIONS if name != "default device"])
def test_a_region_of_closed_code_is_kept(name: str) -> None:
    model = nn.Sequential(InRegion(REGIONS[name]), nn.Linear(3, 3))
    x, before = torch.randn(4, 8), switches()
    aug = ga.rewrite(model, "1", rate=0.0, example_inputs=x)
    SEEN.clear()
    assert torch.equal(aug(x), model(x))
    assert SEEN[0] == SEEN[1] != before


@pytest.mark.parametrize("name", ["sdpa_kernel", "set_default_dtype"])
def test_a_region_around_the_call_of_the_model_acts(name: str) -> None:
    model, x = InRegion(contextlib.nullcontext), torch.randn(4, 8)
    aug = ga.rewrite(model, "last", rate=0.0, example_inputs=x)
    SEEN.clear()
    with REGIONS[name]():
        aug(x), model(x)
    assert SEEN[0] == SEEN[1] != switches()


class Leaves(nn.Module):
    """Sets a switch behind all of its operations, for good."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(self.first(x))
        torch.backends.mha.set_fastpath_enabled(False)
        return h


def test_a_switch_that_is_left_is_refused_and_put_back() -> None:
    before = switches()
    with pytest.raises(CaptureError, match=r"torch\.backends\.mha\.set_fastpath_enabled"):
        ga.rewrite(Leaves(), "first", example_inputs=torch.randn(4, 8))
    assert switches() == before


def test_regions_that_change_nothing_are_no_reason_to_refuse() -> None:
    @contextlib.contextmanager
    def same() -> Iterator[None]:
        with (
            torch.device("cpu"),
            torch.profiler.record_function("region"),
            torch.backends.cudnn.flags(enabled=True),
        ):
            yield

    model, x = InRegion(same), torch.randn(4, 8)
    aug = ga.rewrite(model, "last", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))


def test_every_switch_is_read_and_set() -> None:
    for switch, value in zip(_SWITCHES, switches(), strict=True):
        with settable_backends():
            switch.write(value)
        assert switch.read() == value, switch.name


class Doubles(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is nn.functional.linear else result


class DoublesOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.ops.aten.addmm.default else result


@pytest.mark.parametrize("mode", [Doubles, DoublesOperations])
def test_a_mode_around_a_closed_module_is_refused(mode: Any) -> None:
    with pytest.raises(CaptureError, match=r"enters a mode .*test_switches\.py line \d+"):
        ga.rewrite(InRegion(mode), "last", example_inputs=torch.randn(4, 8))


@pytest.mark.parametrize("mode", [Doubles, DoublesOperations])
def test_a_mode_around_the_model_or_in_closed_code_acts(mode: Any) -> None:
    x = torch.randn(4, 8)
    model = nn.Sequential(InRegion(mode), nn.Linear(3, 3))
    assert torch.equal(ga.rewrite(model, "1", rate=0.0, example_inputs=x)(x), model(x))
    plain = InRegion(contextlib.nullcontext)
    with mode():
        aug = ga.rewrite(plain, "last", rate=0.0, example_inputs=x)
        assert torch.equal(aug(x), plain(x))


def ranks() -> int:
    """As many write it."""
    try:
        return get_rank() + torch.distributed.get_world_size()
    except (RuntimeError, ValueError):
        return 0


class Gathers(nn.Module):
    """Does something else with processes than without."""

    def __init__(self, asks: Callable[[], int]) -> None:
        super().__init__()
        self.first, self.last, self.asks = nn.Linear(8, 8), nn.Linear(8, 3), asks

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h * 10 if self.asks() else h)


ASKS: dict[str, Callable[[], int]] = {
    "torch.distributed.is_initialized": lambda: int(torch.distributed.is_initialized()),
    "a name bound earlier": lambda: int(is_initialized()),
    "in a try": ranks,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ASKS)
def test_processes_that_begin_later_are_noticed(name: str, tmp_path: Path) -> None:
    model, x = Gathers(ASKS[name]), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(AssumptionViolated, match=r"torch\.distributed\.is_initialized\(\) == False"):
            aug(x)
        again = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
        assert torch.equal(again(x), model(x))
        compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), model(x))
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(AssumptionViolated):
        again(x)


SETTINGS: dict[str, tuple[Callable[[], Any], Around]] = {
    "torch.backends.cudnn.enabled": (lambda: torch.backends.cudnn.enabled, REGIONS["cudnn.enabled"]),
    "torch.backends.cudnn.deterministic": (
        lambda: not torch.backends.cudnn.deterministic,
        REGIONS["cudnn.deterministic"],
    ),
    "torch.backends.mkldnn.enabled": (lambda: mkldnn.enabled, REGIONS["mkldnn.enabled"]),
    "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
        lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        REGIONS["allow_fp16_reduced"],
    ),
    "torch.backends.cuda.flash_sdp_enabled()": (flash_sdp_enabled, REGIONS["sdpa_kernel"]),
    "torch.utils.deterministic.fill_uninitialized_memory": (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        attribute(torch.utils.deterministic, "fill_uninitialized_memory", False),
    ),
    "torch.get_default_device()": (
        lambda: int(torch.get_default_device().type == "meta"),
        REGIONS["default device"],
    ),
    "torch.get_num_threads()": (
        lambda: int(torch.get_num_threads() == 1),
        lambda: put(torch.get_num_threads, torch.set_num_threads, 3),
    ),
    "torch.is_warn_always_enabled()": (
        torch.is_warn_always_enabled,
        lambda: put(torch.is_warn_always_enabled, torch.set_warn_always, True),
    ),
    "torch.distributed.is_torchelastic_launched()": (
        lambda: int(torch.distributed.is_torchelastic_launched()),
        lambda: mock.patch.dict(os.environ, {"TORCHELASTIC_RUN_ID": "0"}),
    ),
    "torch.autograd.is_multithreading_enabled()": (
        lambda: int(not torch.autograd.is_multithreading_enabled()),
        lambda: torch.autograd.set_multithreading_enabled(False),
    ),
}
ITSELF_READS = {"torch.distributed.is_torchelastic_launched()": "the environment's TORCHELASTIC_RUN_ID"}
"""What a question reads that is relied on as well, and is the first that is told."""
ABOUT_NO_SETTING = {"is_tensor", "is_storage", "get_file_path", "get_rng_state"}
"""Questions about a value, and what no call changes or what a graph reads anew."""


def test_every_question_of_torch_that_no_mode_sees_is_relied_on() -> None:
    """Over torch's public names: what a function that can be overridden says is in the graph."""
    overridable = {f for found in torch.overrides.get_overridable_functions().values() for f in found}
    functions = (types.FunctionType, types.BuiltinFunctionType)
    questions = {
        name
        for name, value in vars(torch).items()
        if name.startswith(("is_", "are_", "get_")) and isinstance(value, functions)
        if value not in overridable
    }
    assert questions - ABOUT_NO_SETTING <= set(dict(ASKED)[torch])


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_opened_code_reads_is_relied_on(name: str) -> None:
    asks, other = SETTINGS[name]
    model, x = Gathers(asks), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    assert any(text.startswith(name) for text in aug.plan.assumptions)
    if not name.endswith("()"):  # a function which Dynamo does not take in the plain model, either
        compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), model(x))
    with other():
        with pytest.raises(AssumptionViolated, match=re.escape(ITSELF_READS.get(name, name))):
            aug(x)
        assert torch.equal(aug.eval()(x), model.eval()(x))


def test_the_callers_inference_mode_is_told_from_the_forwards() -> None:
    model, x = InRegion(contextlib.nullcontext), torch.randn(4, 8)
    with torch.inference_mode(), pytest.raises(CaptureError, match="call this outside of it"):
        ga.rewrite(model, "last", example_inputs=x)
    with pytest.raises(CaptureError, match="opens an inference_mode region"):
        ga.rewrite(InRegion(torch.inference_mode), "last", example_inputs=x)
