"""What a step leaves behind, in a model and in its inputs: compared between two ways to compute it."""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from graphaug.capture.held import tensors_of
from graphaug.capture.state import OF_EVERY_MODULE, SMALL
from graphaug.proof.equivalence import dense, same, tensors_in

_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, dict, set, collections.deque)


def left_in(model: nn.Module, inputs: Any = ()) -> dict[str, Any]:
    """Tensors, numbers and the lengths of containers, by their names; of large tensors two sums."""
    found: dict[str, Any] = {}
    for path, m in model.named_modules():
        held = {**vars(m), **m._parameters, **m._buffers}
        for name, value in held.items():
            place = f"{path}.{name}".removeprefix(".")
            if name in OF_EVERY_MODULE:
                continue
            if isinstance(value, _PLAIN):
                found[place] = value
            elif isinstance(value, Tensor):
                found[place] = _noted(value)
            elif type(value) in _CONTAINERS:
                found[place] = len(value)
                found.update((f"{place}[{i}]", _noted(t)) for i, t in enumerate(tensors_of(value)))
    found.update((f"input {i}", _noted(t)) for i, t in enumerate(tensors_in(inputs)))
    return found


def otherwise_left(expected: dict[str, Any], found: dict[str, Any], tolerance: float) -> str:
    """The first name of what is not left alike, by more than rounding of floats; or an empty string."""
    if expected.keys() != found.keys():
        return min(expected.keys() ^ found.keys())
    return next((name for name, value in expected.items() if not _alike(value, found[name], tolerance)), "")


def _noted(tensor: Tensor) -> Any:
    if tensor.is_meta or is_lazy(tensor):
        return None
    numbers = dense(tensor.detach())
    if numbers.is_complex():
        numbers = torch.view_as_real(numbers.resolve_conj())
    if numbers.numel() <= SMALL:
        return numbers.clone()
    total = numbers.sum(dtype=torch.float64)
    if not numbers.is_floating_point():
        return torch.stack([total, numbers.abs().sum(dtype=torch.float64)])
    return torch.stack([total, torch.linalg.vector_norm(numbers, 1, dtype=torch.float64)])  # copies nothing


def _alike(a: Any, b: Any, tolerance: float) -> bool:
    if same(a, b):
        return True
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    if not tensors or a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return False
    a, b = a.nan_to_num().double(), b.nan_to_num().double()
    return float((a - b).abs().max()) <= tolerance * max(float(a.abs().max()), 1e-6)
