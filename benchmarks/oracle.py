"""Deep Augmentation by a forward hook on the plain model: the oracle that shares no code with the library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Where(NamedTuple):
    """Where the samples lie: index ``(o * B + b) * inner + i`` of a dimension belongs to sample ``b`` of ``B``."""

    dim: int = 0
    slices: int = 1
    inner: int = 1


PLAIN = Where()


class Masks:
    """Masks drawn once for a site, to be imposed on both sides of a comparison."""

    def __init__(self, rate: float, subset: float, seed: int = 0) -> None:
        self.rate, self.subset = rate, subset
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: Tensor | None = None
        self.noise: Tensor | None = None

    def draw(self, h: Tensor, place: Where = PLAIN) -> tuple[Tensor, Tensor]:
        """Which samples are augmented, and by what every number is multiplied."""
        if self.rows is None or self.noise is None:
            samples = h.shape[place.dim] // place.slices
            count = round(self.subset * samples)
            order = torch.randperm(samples, generator=self.generator)
            self.rows = torch.zeros(samples, dtype=torch.bool)
            self.rows[order[:count]] = True
            kept = torch.rand(h.shape, generator=self.generator) >= self.rate
            self.noise = kept / (1 - self.rate)
        return self.rows.to(h.device), self.noise.to(h)


def first_tensor(value: Any) -> Tensor:
    """The tensor of an output: itself, or the first entry of a tuple or mapping."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if hasattr(value, "values") else value[0]
    return value


def with_first(value: Any, new: Tensor) -> Any:
    """The same output with its first tensor replaced."""
    if isinstance(value, Tensor):
        return new
    if hasattr(value, "values"):
        key = next(iter(value))
        return type(value)(**{**value, key: with_first(value[key], new)})
    return type(value)([with_first(value[0], new), *value[1:]])


def entry_of(value: Any, keys: Sequence[Any]) -> Any:
    """What lies in an output under these keys, one in the other."""
    for key in keys:
        value = value[key]
    return value


def with_entry(value: Any, keys: Sequence[Any], new: Any) -> Any:
    """The same output with another entry there."""
    if not keys:
        return new
    key, *rest = keys
    inner = with_entry(value[key], rest, new)
    if hasattr(value, "values"):
        return type(value)(**{**value, key: inner})
    return type(value)(inner if i == key else held for i, held in enumerate(value))


@contextlib.contextmanager
def hook(
    module: nn.Module,
    masks: Masks,
    *,
    stop_grad: bool,
    call: int = 0,
    entry: Sequence[Any] = (),
    place: Where = PLAIN,
) -> Iterator[None]:
    """Augment the output of ``module``, or an entry of it, in its ``call``-th call, as one would write it by hand."""
    seen = 0

    def augment(_: nn.Module, args: Any, output: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen != call + 1:
            return None
        chosen = entry_of(output, entry)
        h = first_tensor(chosen)
        rows, noise = masks.draw(h, place)
        parts = []
        for i, (part, factor) in enumerate(zip(h.unbind(place.dim), noise.unbind(place.dim), strict=True)):
            dropped = part * factor
            sample = i // place.inner % len(rows)
            parts.append((dropped.detach() if stop_grad else dropped) if rows[sample] else part)
        return with_entry(output, entry, with_first(chosen, torch.stack(parts, place.dim)))

    # before the hooks by which transformers keeps what its blocks return
    handle = module.register_forward_hook(augment, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def imposed(augmentation: nn.Module, masks: Masks) -> Iterator[None]:
    """Make an augmentation node of the library use the given masks, also if it sees the stopped rows alone."""
    rows, noise = masks.rows, masks.noise
    assert rows is not None
    assert noise is not None

    def draw_noise(h: Tensor) -> Tensor:
        return (noise if h.shape == noise.shape else noise[rows]).to(h)

    augmentation.__dict__["draw_rows"] = lambda count, device: rows.to(device)
    augmentation.__dict__["draw_noise"] = draw_noise
    try:
        yield
    finally:
        del augmentation.__dict__["draw_rows"], augmentation.__dict__["draw_noise"]


def leaves(output: Any) -> list[Tensor]:
    """Every floating-point tensor of an output that carries a gradient."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.requires_grad else []
    if hasattr(output, "values"):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [t for entry in output for t in leaves(entry)]
    return []


def gradients(model: nn.Module, output: Any) -> list[Tensor]:
    """Gradients of a fixed random projection of the output, with respect to every parameter."""
    generator = torch.Generator().manual_seed(1)
    terms = [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in leaves(output)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(torch.stack(terms).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest difference between two lists of tensors, relative to the largest entry of all."""
    size = max([float(t.detach().abs().max()) for t in [*first, *second] if t.numel()], default=0.0)
    gap = max(
        [float((a - b).detach().abs().max()) for a, b in zip(first, second, strict=True) if a.numel()],
        default=0.0,
    )
    return gap / size if size else gap
