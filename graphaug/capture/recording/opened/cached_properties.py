"""What ``functools.cached_property`` keeps in a module: there in a recording as the model's first call makes it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.relied.reach import any_module, reached_by
from graphaug.capture.recording.relied.told import BY_VALUE
from graphaug.capture.state import unchanged, undrawn
from graphaug.errors import CaptureError, an

_VALUES = (Tensor, float, torch.dtype, *BY_VALUE)
"""What is told by its value, beside plain values: another one in its place is the same."""


@contextlib.contextmanager
def properties_kept(model: nn.Module, opened: Collection[str]) -> Iterator[None]:
    """Make in this block what opened code reads of it and no call has made yet; it is gone again behind it.

    A graph reads it off the module in every call, as the forward does, so that the first call makes it.

    Raises:
        CaptureError: it is an object, of which a graph holds the very one, or making it changes more.
    """
    kept = {cls: _cached(cls) for cls in {type(m) for m in model.modules()}}
    missing = [
        (p, m, name) for p, m in model.named_modules() for name in sorted(kept[type(m)] - vars(m).keys())
    ]
    if not missing:
        yield
        return
    names = reached_by(model, opened, any_module).names
    with unchanged(model, tensors=False) as state:
        for path, module, name in missing:
            if name not in names:
                continue
            place, before = f"{path}.{name}".removeprefix("."), set(state.changes())
            try:
                with undrawn():
                    value = getattr(module, name)
            except Exception:  # it needs what the forward sets; the recording tells
                continue
            others = set(state.changes()) - before - {place}
            if others or not (isinstance(value, _VALUES) or is_plain(value)):
                what = (
                    f"sets {min(others)!r}" if others else f"is {an(value)}, and a graph holds the very one"
                )
                raise CaptureError(
                    f"{type(model).__name__}.forward cannot be captured: it reads '{place}', a cached_property that no "
                    f"call has made yet, which {what}. Run the model once before, or choose a site outside of that "
                    "module, so that it stays closed."
                )
        yield


def _cached(cls: type) -> set[str]:
    found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    return {name for name, value in found.items() if isinstance(value, functools.cached_property)}
