"""The cache that decoders of transformers fill unless they are told not to: whether a training step goes without it.

No graph holds an object that modules fill. Such a cache is for generating: a training step makes it, and nobody reads
it. So where it is the configuration alone that asks for one, a training step is that of ``use_cache=False``, as it is
where gradients are checkpointed, if all else that the model returns is the same in a trial.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map_only

from graphaug.capture.inputs.spare import run_once
from graphaug.capture.state import unchanged, undrawn

USE_CACHE = "use_cache"
_GAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""The most that two kernels of one attention differ by, of the norm of what they return."""
_ROWS = 2
"""So many rows are tried first."""
_NOTE = "a training step is that of use_cache=False, which returns no cache ({}); eval mode runs the original"


@dataclass(frozen=True)
class Cache:
    """What became of a cache that the configuration of a model asks for.

    Attributes:
        left_out: whether the graph goes without one, and a call that does not say ``use_cache=False`` means that.
        differs: whether the model was seen to return something else without it.
        note: what the plan says of it; else empty.
    """

    left_out: bool = False
    differs: bool = False
    note: str = ""


def cache_of(
    model: nn.Module, examples: Mapping[str, Any], positional: tuple[str, ...], named: Mapping[str, Any]
) -> Cache:
    """Try a model with and without the cache that its configuration asks for; nothing of the model moves.

    Args:
        model: the model.
        examples: its inputs by name; those of a guess are on the meta device, and get data here.
        positional: the names of those that have a place.
        named: all that its forward names, with their defaults.
    """
    asked = examples.get(USE_CACHE)
    if not _may_be_told(model, named) or asked not in (None, False) or not _is_configured(model):
        return Cache()
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        if asked is None:
            return Cache()
        return Cache(True, note=_NOTE.format("not compared: it is on the meta device"))
    examples = _with_data(examples, model)
    for inputs in _few_rows_then_all(examples):
        try:
            with unchanged(model), undrawn(), torch.enable_grad():
                same, fills = _compared(model, inputs, positional, with_gradients=asked is False)
            break
        except Exception:  # so few rows do not fit, or the examples do not, which the capture will say
            continue
    else:
        return Cache()
    if not same or not (fills or asked is False):
        return Cache(differs=not same)
    return Cache(True, note=_NOTE.format("in a trial of the example all else was equal") if fills else "")


def _compared(
    model: nn.Module, inputs: Mapping[str, Any], positional: tuple[str, ...], with_gradients: bool
) -> tuple[bool, bool]:
    """Whether a model returns the same without a cache, the cache aside, and whether it fills one.

    Gradients are compared where it does, or if they are asked for.
    """
    cached = {name: value for name, value in inputs.items() if name != USE_CACHE}
    plain, whole = (
        _by_place(run_once(model, given, positional, training=True))
        for given in ({**cached, USE_CACHE: False}, cached)
    )
    same = plain.keys() <= whole.keys() and all(_close(plain[place], whole[place]) for place in plain)
    fills = bool(whole.keys() - plain.keys())
    if same and (fills or with_gradients):
        gradients = (_gradients(model, [found[place] for place in plain]) for found in (plain, whole))
        same = all(map(_close, *gradients))
    return same, fills


def _few_rows_then_all(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs cut to two rows, which tell as much, and then as they are; of no more rows, these alone."""
    lead = next((t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()), None)
    if lead is not None and len(lead) > _ROWS:
        yield tree_map_only(Tensor, lambda t: t[:_ROWS] if t.dim() and len(t) == len(lead) else t, inputs)
    yield inputs


def _may_be_told(model: nn.Module, named: Mapping[str, Any]) -> bool:
    """Whether a call may say that it wants no cache: by an argument that is left to the configuration, or by ``**``."""
    parameters = inspect.signature(model.forward).parameters.values()
    return named.get(USE_CACHE, 0) is None or (
        USE_CACHE not in named and any(p.kind is p.VAR_KEYWORD for p in parameters)
    )


def _is_configured(model: nn.Module) -> bool:
    """Whether a configuration of transformers', of the model or of one inside of it, asks for a cache."""
    for config in (getattr(module, "config", None) for module in model.modules()):
        packages = {cls.__module__.partition(".")[0] for cls in type(config).__mro__}
        if "transformers" in packages and getattr(config, USE_CACHE, None) is True:
            return True
    return False


def _with_data(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Inputs with data in the place of those of a guess, which have none."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def made(t: Tensor) -> Tensor:
        if not t.is_meta:
            return t
        if t.is_floating_point():
            return torch.randn(t.shape, generator=generator).to(device, t.dtype)
        return torch.randint(2, t.shape, generator=generator).to(device, t.dtype)  # any table has two entries

    found: dict[str, Any] = tree_map_only(Tensor, made, dict(inputs))
    return found


def _gradients(model: nn.Module, returned: list[Any]) -> list[Tensor | None]:
    """Gradients of the square of what a training step returns.

    Of biases and norms, where there are any: they lie on every way, and cost a fraction of what the matrices do.
    """
    every = [p for p in model.parameters() if p.requires_grad]
    trained = [p for p in every if p.dim() < 2] or every
    losses = [t.float().square().sum() for t in returned if isinstance(t, Tensor) and t.requires_grad]
    if not losses or not trained:
        return [None] * len(trained)
    return list(torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True))


def _by_place(returned: Any) -> dict[str, Any]:
    """The tensors, numbers and caches of an output by where they lie in it."""
    leaves, _ = tree_flatten_with_path(returned, is_leaf=lambda v: "cache" in type(v).__name__.lower())
    return {keystr(path): value for path, value in leaves}


def _close(a: Any, b: Any) -> bool:
    """Whether two values are the same, as far as kernels go."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and (a is b or "cache" in type(a).__name__.lower() or bool(a == b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b) or not a.is_floating_point():
        return torch.equal(a, b)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    one, other = (torch.nan_to_num(t.double(), 0.0, 0.0, 0.0) for t in (a, b))
    return bool((one - other).norm() <= _GAP.get(a.dtype, 0.0) * other.norm())
