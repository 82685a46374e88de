"""The inputs that a model declares: timm's ``pretrained_cfg``, transformers' ``dummy_inputs`` and configuration.

Tensors are made on the meta device: they have a shape and a dtype, and no data.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.caches import USE_CACHE

Proposed = tuple[str, dict[str, Any]]
"""Where inputs come from, in words, and the inputs by name of the parameter."""

ROWS, TOKENS = 2, 5
_SECOND_OF_AUDIO = 16_000


def declared(model: nn.Module) -> Iterator[Proposed]:
    """Inputs that the model itself declares, those most to the point first."""
    parameters = inspect.signature(model.forward).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(required) == 1:
        for name in ("pretrained_cfg", "default_cfg"):
            size = _look_up(getattr(model, name, None), "input_size")
            if _is_shape(size):
                yield name, {required[0]: empty((ROWS, *size), dtype_of(model))}
    if hasattr(model, "main_input_name") and hasattr(model, "config"):
        for source, inputs in _of_transformers(model):
            if set(inputs) <= set(parameters) and set(required) <= set(inputs):
                yield source, inputs
                if USE_CACHE in parameters:
                    # a cache that every call fills is nothing that a graph can hold
                    yield source, {**inputs, USE_CACHE: False}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type that a module computes in, by its first parameter of one."""
    found = (t.dtype for t in (*module.parameters(), *module.buffers()) if t.dtype.is_floating_point)
    return next(found, torch.get_default_dtype())


def image_sizes(model: nn.Module) -> list[int | tuple[int, ...]]:
    """The image sizes that modules say they were made for, in the order of their registration."""
    found = (vars(module).get(name) for module in model.modules() for name in ("img_size", "image_size"))
    sizes: Iterator[Any] = (tuple(s) if isinstance(s, (tuple, list)) else s for s in found)
    return list(dict.fromkeys(s for s in sizes if (type(s) is int and s > 0) or _is_shape(s)))


def _is_shape(size: Any) -> bool:
    return isinstance(size, (tuple, list)) and bool(size) and all(type(n) is int and n > 0 for n in size)


def _look_up(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


# --- transformers ---------------------------------------------------------------------------------


def _of_transformers(model: nn.Module) -> Iterator[Proposed]:
    """What a model of transformers is called with: its dummies, or its main input, alone and with what goes with it."""
    main = getattr(model, "main_input_name", None)
    if not isinstance(main, str):
        return
    dummies: Any = None
    with contextlib.suppress(Exception):  # those of some models want a configuration that this one lacks
        dummies = getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping) and main in dummies:
        given = {k: v for k, v in dummies.items() if v is not None}
        if all(isinstance(v, Tensor) for v in given.values()):
            yield "dummy_inputs", {k: v.detach().to("meta") for k, v in given.items()}
    source = "main_input_name and config"
    others = [n for n in inspect.signature(model.forward).parameters if n in ("input_ids", "pixel_values")]
    for shape in _shapes(model.config, main):
        first = {main: _input(model, main, shape)}
        yield source, first
        yield source, {**first, "decoder_input_ids": _input(model, "decoder_input_ids", (ROWS, TOKENS))}
        for name in (n for n in others if n != main):
            for beside in _shapes(model.config, name):
                yield source, {**first, name: _input(model, name, beside)}


def _input(model: nn.Module, name: str, shape: tuple[int, ...]) -> Tensor:
    return empty(shape, torch.int64 if name.endswith("input_ids") else dtype_of(model))


def _shapes(config: Any, name: str) -> Iterator[tuple[int, ...]]:
    """The shapes that an input of this name may have by the configuration; none if that does not tell."""
    mels = _first(
        config, "num_mel_bins", "feature_size", "feature_projection_input_dim", "input_feat_per_channel"
    )
    if name == "input_ids":
        yield ROWS, TOKENS
        yield ROWS, 16
    elif name == "pixel_values":
        size = _first(config, "image_size", "img_size") or 224
        height, width = (size, size) if isinstance(size, int) else (*size, *size)[:2]
        image = _first(config, "num_channels", "in_channels", "in_chans") or 3, height, width
        frames = _first(config, "num_frames")
        if frames:
            yield ROWS, frames, *image
        yield ROWS, *image
    elif name == "input_features" and mels:
        positions = _first(config, "max_source_positions")
        if positions:
            yield ROWS, mels, 2 * positions
        yield ROWS, 64, mels
    elif name == "input_values":
        frames = _first(config, "max_length")
        if mels and frames:
            yield ROWS, frames, mels
        yield ROWS, _SECOND_OF_AUDIO
    elif name in ("inputs_embeds", "hidden_states"):
        hidden = _first(config, "hidden_size", "d_model")
        if hidden:
            yield ROWS, TOKENS, hidden


def _first(config: Any, *names: str) -> Any:
    """A number, or a pair of them, that a configuration or one of those inside of it holds."""
    inner = [c for c in getattr(config, "__dict__", {}).values() if hasattr(c, "to_dict")]
    for holder in (config, *inner):
        for name in names:
            value = getattr(holder, name, None)
            if (type(value) is int and value > 0) or _is_shape(value):
                return value
    return None
