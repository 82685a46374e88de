"""Caches that a forward fills, as decoders of transformers do: what turns them off, and whether all else stays.

No graph holds an object that modules fill. Such a cache is for generating: a training step makes it, and nobody reads
it. So it is left out where it is the configuration alone that asks for one, and where the outputs are the same without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import FILLS_A_CACHE, Input, Signature
from graphaug.capture.inputs.spare import run_as_it_is
from graphaug.errors import CaptureError

_GAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""The most that two kernels of one attention differ by, of the norm of what they return."""


def what_turns_off_caches(signature: Signature, model: nn.Module) -> str:
    """What turns off the caches that a model's modules fill, as a sentence after a space; "" if nothing does."""
    given = [name for name, value in signature.examples.items() if "cache" in type(value).__name__.lower()]
    if given:
        return f" Leave {given[0]!r} out of example_inputs, and pass use_cache=False."
    switches = [name for name in signature.defaults if name.startswith("use_") and "cache" in name]
    if switches:
        return f" Pass {switches[0]}=False in example_inputs."
    for entry in signature.captured:
        if entry.name.startswith("use_") and "cache" in entry.name:
            return f" Pass {entry.name}=False in example_inputs." if entry.default is True else ""
    for path, module in model.named_modules():
        if getattr(getattr(module, "config", None), FILLS_A_CACHE, False) is True:
            return f" Set {'.'.join(filter(None, ('model', path)))}.config.{FILLS_A_CACHE} = False."
    return ""


def without_cache(signature: Signature, model: nn.Module, refused: CaptureError) -> Signature | None:
    """The signature with ``use_cache=False``, where the example leaves that to the configuration; else None.

    Args:
        signature: what a cache was met with.
        model: the model.
        refused: what was said of the cache.

    Raises:
        CaptureError: the model returns something else without its cache, or cannot be run to see that.
    """
    configs = (getattr(module, "config", None) for module in model.modules())
    configured = any(getattr(config, FILLS_A_CACHE, None) is True for config in configs)
    if not configured or signature.defaults.get(FILLS_A_CACHE, False) is not None:
        return None
    compared = "not compared with it: the model is on the meta device"
    if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        _check_the_same(signature, model, refused)
        compared = "all else was equal in a trial of the example"
    note = (
        f"captured with use_cache=False, as no graph holds a cache: training steps return none ({compared}), and eval "
        "mode runs the original, cache and all"
    )
    entry = Input(FILLS_A_CACHE, FILLS_A_CACHE not in signature.positional, default=False, otherwise=None)
    return dataclasses.replace(
        signature,
        captured=(*signature.captured, entry),
        defaults={k: v for k, v in signature.defaults.items() if k != FILLS_A_CACHE},
        examples={**signature.examples, FILLS_A_CACHE: False},
        cache_note=note,
    )


def _check_the_same(signature: Signature, model: nn.Module, refused: CaptureError) -> None:
    examples = _real(signature.examples, model)
    try:
        for training in (True, False):
            cached, plain = (
                _tensors(run_as_it_is(model, inputs, signature.positional, training))
                for inputs in (examples, {**examples, FILLS_A_CACHE: False})
            )
            if not plain or any(not _close(plain[key], cached.get(key)) for key in plain):
                raise CaptureError(
                    f"{refused} It is not taken for granted, as this model returns something else without its cache."
                )
    except CaptureError:
        raise
    except Exception as error:
        raise refused from error


def _real(examples: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The examples with data in the place of those of a guess, which have none."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def made(t: Tensor) -> Tensor:
        if not t.is_meta:
            return t
        if t.is_floating_point():
            return torch.randn(t.shape, generator=generator).to(device, t.dtype)
        return torch.randint(2, t.shape, generator=generator).to(
            device, t.dtype
        )  # each table has two entries

    return dict(torch.utils._pytree.tree_map_only(Tensor, made, dict(examples)))


def _tensors(returned: Any) -> dict[str, Tensor]:
    """The tensors of an output by where they lie in it, those of a cache left out."""
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(
        returned, is_leaf=lambda v: "cache" in type(v).__name__.lower()
    )
    return {torch.utils._pytree.keystr(path): value for path, value in leaves if isinstance(value, Tensor)}


def _close(plain: Tensor, cached: Tensor | None) -> bool:
    if cached is None or cached.shape != plain.shape or cached.dtype != plain.dtype:
        return False
    if not plain.is_floating_point():
        return torch.equal(plain, cached)
    both = plain.nan_to_num().double(), cached.nan_to_num().double()
    gap, size = (both[0] - both[1]).norm(), both[1].norm()
    return bool(gap <= _GAP.get(plain.dtype, 0.0) * size)
