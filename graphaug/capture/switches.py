"""The switches of torch that hold for a whole process, or for a region of it, and say how its operations compute.

The grad mode and autocast are not among them: a graph keeps what opened code sets of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from graphaug.torch_private import dispatch_modes, function_modes, settable_backends

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class _Switch:
    """One switch: what a user calls it, and how it is read and set."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _attribute(owner: Any, name: str) -> _Switch:
    return _Switch(
        f"{owner.__name__}.{name}", lambda: getattr(owner, name), lambda value: setattr(owner, name, value)
    )


def _precision(owner: Any, name: str) -> _Switch:
    return _Switch(
        f"{name}.fp32_precision",
        lambda: owner.fp32_precision,
        lambda value: setattr(owner, "fp32_precision", value),
    )


def _attention(kernel: str) -> _Switch:
    return _Switch(
        f"the attention kernels (sdpa_kernel, {kernel})",
        getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"),
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp"),
    )


def _float32_precision() -> str | None:
    """None where single backends were set by the newer names, and the older ones cannot be asked."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_float32_precision(value: str | None) -> None:
    if value is not None:
        torch.set_float32_matmul_precision(value)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


backends: Any = torch.backends
_matmul = backends.cuda.matmul
_SWITCHES = (
    _Switch("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Switch(
        "torch.use_deterministic_algorithms",
        _determinism,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    _Switch(
        "torch.autograd.set_detect_anomaly",
        _anomaly,
        lambda value: torch.autograd.set_detect_anomaly(value[0], check_nan=value[1]),
    ),
    *map(_attention, ("flash", "mem_efficient", "math", "cudnn")),
    _Switch(
        "torch.backends.mha.set_fastpath_enabled",
        backends.mha.get_fastpath_enabled,
        backends.mha.set_fastpath_enabled,
    ),
    *(_attribute(backends.cudnn, name) for name in ("enabled", "deterministic")),
    _attribute(backends.mkldnn, "enabled"),
    _Switch(
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
        lambda: _matmul.allow_fp16_reduced_precision_reduction,
        lambda value: setattr(_matmul, "allow_fp16_reduced_precision_reduction", value),
    ),
    _Switch(
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
        lambda: _matmul.allow_bf16_reduced_precision_reduction,
        lambda value: setattr(_matmul, "allow_bf16_reduced_precision_reduction", value),
    ),
    # which sets some of those behind it too
    _Switch("torch.set_float32_matmul_precision", _float32_precision, _set_float32_precision),
    _precision(_matmul, "torch.backends.cuda.matmul"),
    _precision(backends.cudnn.conv, "torch.backends.cudnn.conv"),
    _precision(backends.cudnn.rnn, "torch.backends.cudnn.rnn"),
    _precision(backends.mkldnn.matmul, "torch.backends.mkldnn.matmul"),
)


def setting(*path: str) -> Any:
    """What torch says at a path, such as ``("backends", "cudnn", "enabled")``."""
    found: Any = torch
    for name in path:
        found = getattr(found, name)
    return found


def switches() -> tuple[Any, ...]:
    """How all switches are set, as values that compare."""
    return tuple(switch.read() for switch in _SWITCHES)


def switched(before: tuple[Any, ...]) -> str:
    """The name of the first switch that is set otherwise than before; empty if none is."""
    now = switches()
    if now == before:
        return ""
    return next(switch.name for switch, a, b in zip(_SWITCHES, before, now, strict=True) if a != b)


def entered(*, of_functions: bool) -> list[Any]:
    """The modes that a user's code entered here, which see torch's functions or its operations: no mode of ours."""
    modes = function_modes() if of_functions else dispatch_modes()
    return [mode for mode in modes if not type(mode).__module__.startswith(f"{_PACKAGE}.")]


@contextlib.contextmanager
def switched_back() -> Iterator[None]:
    """Set those back afterwards that are set otherwise in this block."""
    before = switches()
    try:
        yield
    finally:
        if switched(before):
            with settable_backends():
                for switch, value in zip(_SWITCHES, before, strict=True):
                    if switch.read() != value:
                        switch.write(value)
