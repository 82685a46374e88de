"""What ``functools.cached_property`` keeps in a module: there in a recording as the model's first call makes it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.relied.reach import any_module, reached_by
from graphaug.capture.state import unchanged, undrawn
from graphaug.errors import CaptureError


@contextlib.contextmanager
def properties_kept(model: nn.Module, opened: Collection[str]) -> Iterator[None]:
    """Make in this block what opened code reads of it and no call has made yet; it is gone again behind it.

    A graph reads it off the module in every call, as the forward does, so that the first call makes it.

    Raises:
        CaptureError: it is an object, of which a graph holds the very one.
    """
    modules = {path: model.get_submodule(path) for path in sorted({"", *opened})}
    missing = [(path, name) for path, m in modules.items() for name in _not_made(m)]
    if not missing:
        yield
        return
    names = reached_by(model, opened, any_module).names
    with unchanged(model, tensors=False):
        for path, name in missing:
            if name not in names:
                continue
            try:
                with undrawn():
                    value = getattr(modules[path], name)
            except Exception:  # it needs what the forward sets; the recording tells
                continue
            if not isinstance(value, Tensor) and not is_plain(value) and type(value) is not float:
                place = f"{path}.{name}".removeprefix(".")
                raise CaptureError(
                    f"{type(model).__name__}.forward cannot be captured: it reads '{place}', a cached_property that "
                    f"no call has made yet, and a graph holds the very {type(value).__name__} that it has seen. Run "
                    "the model once before, or choose a site outside of that module, so that it stays closed."
                )
        yield


def _not_made(m: nn.Module) -> list[str]:
    found = {name: value for cls in reversed(type(m).__mro__) for name, value in vars(cls).items()}
    kept = {name for name, value in found.items() if isinstance(value, functools.cached_property)}
    return sorted(kept - vars(m).keys())
