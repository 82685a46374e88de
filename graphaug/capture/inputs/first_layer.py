"""The inputs that a model's layers tell: channels of a convolution, features of a linear layer, ids of an embedding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.declared import ROWS, Proposed, dtype_of, empty, image_sizes
from graphaug.torch_private import UninitializedTensorMixin

_CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
}  # fmt: skip
_NORMS: dict[type[nn.Module], int] = {
    nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3,
}  # fmt: skip
_USUAL: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((256,), (1024,), (16_000,), (128,), (100,), (64,), (32,), (16,), (8,)),
    2: tuple((n, n) for n in (224, 32, 28, 299, 64, 96, 128, 256, 384)),
    3: ((16, 112, 112), (16, 16, 16), (32, 32, 32), (64, 64, 64), (8, 8, 8)),
}
_OF_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention)
_LENGTHS = (16, 8, 4)
_MOST_LAYERS = 5


def of_layers(model: nn.Module) -> Iterator[Proposed]:
    """Inputs of the shapes that the first layers take, every required parameter of the forward given the same.

    The first layer that is registered need not be the first that runs: a few more of them, those that take something
    else, are asked after it.
    """
    names = _required(model)
    if not names:
        return
    asked: set[Any] = set()
    for path, layer in model.named_modules():
        kind = _kind(layer)
        if kind is None or kind[:2] in asked or len(asked) == _MOST_LAYERS:
            continue
        asked.add(kind[:2])
        for shape in _shapes(model, *kind):
            yield f"its layer {path!r}" if path else "itself", {n: _rows(shape, kind[2]) for n in names}


def _required(model: nn.Module) -> list[str]:
    """The parameters of the forward that have to be given; none if one of them is said to be no tensor."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in named if p.default is p.empty]
    if any(p.annotation not in (p.empty, Tensor, Any, "Tensor", "torch.Tensor", "Any") for p in required):
        return []
    return [p.name for p in required]


def _kind(layer: nn.Module) -> tuple[str, int, torch.dtype] | None:
    """What a layer takes: images, features or ids; of how many channels, features or symbols; of which type."""
    for cls, dimensions in _CONVOLUTIONS.items():
        if isinstance(layer, cls):
            return _known(f"{dimensions}d", layer.in_channels, dtype_of(layer))
    for cls, dimensions in _NORMS.items():
        if isinstance(layer, cls):
            return _known(f"{dimensions}d", layer.num_features, dtype_of(layer))
    if isinstance(layer, nn.BatchNorm1d):
        return _known("features", layer.num_features, dtype_of(layer))
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return _known("features", layer.normalized_shape[0], dtype_of(layer))
    if isinstance(layer, nn.Linear):
        return _known("features", layer.in_features, dtype_of(layer))
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return _known(
            "sequence" if isinstance(layer, nn.RNNBase) else "features", layer.input_size, dtype_of(layer)
        )
    if isinstance(layer, nn.MultiheadAttention):
        return _known("sequence", layer.embed_dim, dtype_of(layer))
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _known("ids", layer.num_embeddings, torch.int64)
    return None


def _known(kind: str, size: Any, dtype: torch.dtype) -> tuple[str, int, torch.dtype] | None:
    return (kind, size, dtype) if type(size) is int and size > 0 else None  # a lazy layer has none yet


def _shapes(model: nn.Module, kind: str, size: int, dtype: torch.dtype) -> Iterator[tuple[int, ...]]:
    """Shapes of one row, the most usual first."""
    if kind == "ids":
        yield from ((n,) for n in (*_LENGTHS, *_positions(model)))
        yield ()
    elif kind == "features" and not any(isinstance(m, _OF_SEQUENCES) for m in model.modules()):
        yield (size,)
        yield from ((n, size) for n in (_LENGTHS[0], *_positions(model)))
        yield 7, 7, size
        yield size, 7, 7  # channels that are pooled before they reach a layer
    elif kind in ("features", "sequence"):
        # in two dimensions these layers take it for a sequence without a batch
        yield from ((n, size) for n in (*_LENGTHS, *_positions(model)))
        yield (size,)
    else:
        dimensions = int(kind[0])
        declared = [(s,) * dimensions if isinstance(s, int) else s for s in image_sizes(model)]
        usual = [s for s in (*declared, *_USUAL[dimensions]) if len(s) == dimensions]
        yield from ((size, *s) for s in dict.fromkeys(usual))


def _positions(model: nn.Module) -> list[int]:
    """The lengths of the parameters and buffers that lie beside layers, as one of positions does."""
    beside = [m for m in model.modules() if list(m.children())]
    tables = (t for m in beside for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
    known = (t for t in tables if not isinstance(t, UninitializedTensorMixin) and t.dim() >= 2)
    return list(dict.fromkeys(int(t.shape[-2]) for t in known))[:_MOST_LAYERS]


def _rows(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A batch of a few; not as many as another dimension is long, so that no size of it is taken for the batch's."""
    rows = next(n for n in range(ROWS, 100) if n not in shape)
    return empty((rows, *shape), dtype)
