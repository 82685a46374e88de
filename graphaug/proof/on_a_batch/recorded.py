"""What the augmentations of a step drew, recorded so that the step can be made again without them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.rows import Members, Rows
from graphaug.augment.site import Augmentation
from graphaug.augment.transformed import Transformed
from graphaug.proof.on_a_batch.outputs import first_tensor

_METHODS = ("draw_rows", "draw_noise", "transformed")
Aside = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass
class Recorded:
    """What one augmentation drew in one forward.

    Attributes:
        rows: which rows were augmented, (B,).
        noise: the factors of a dropout.
        state: of the random numbers, just before a transform drew its own; or behind the rows, if no row went through.
        changed: whether rows went through a transform.
        index: which rows those were; None: all.
        kept: of fewer tokens, those that each row keeps, (n, k).
    """

    rows: Tensor
    noise: Tensor | None = None
    state: tuple[Tensor, ...] = ()
    changed: bool = False
    index: Tensor | None = None
    kept: Tensor | None = None


def record(augmentation: Augmentation, into: list[Recorded], aside: Aside = contextlib.nullcontext) -> None:
    """Keep what a node draws, ``aside``: by instance attributes, which `stop_recording` takes away again."""
    kind: Any = type(augmentation)

    def rows(count: int, device: torch.device) -> Tensor:
        with aside():
            drawn: Tensor = kind.draw_rows(augmentation, count, device)
        into.append(Recorded(drawn, state=_state(device)))
        return drawn

    def noise(h: Tensor) -> Tensor:
        with aside():
            drawn: Tensor = kind.draw_noise(augmentation, h)
        into[-1].noise = drawn
        return drawn

    def transformed(
        some: Tensor, rows: Tensor, index: Tensor | None, whole: Any, drawn: Any = None
    ) -> Tensor:
        into[-1].state, into[-1].changed, into[-1].index = _state(some.device), True, index
        drawn = [] if drawn is None else drawn
        with aside():
            out: Tensor = kind.transformed(augmentation, some, rows, index, whole, drawn)
        transform: Any = augmentation.transform
        into[-1].kept = transform.kept(drawn[-1])
        return out

    augmentation.__dict__["draw_rows"] = rows
    if isinstance(augmentation, DeepAugment):
        augmentation.__dict__["draw_noise"] = noise
    else:
        augmentation.__dict__["transformed"] = transformed


def stop_recording(augmentation: Augmentation) -> None:
    """Give a node its own methods back."""
    for name in _METHODS:
        augmentation.__dict__.pop(name, None)


def again(value: Any, recorded: Recorded, augmentation: Augmentation) -> Any:
    """What the plan says becomes of a value at a site, with what was drawn; random numbers are used up alike."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        first = again(value[0], recorded, augmentation)
        return type(value)(first, *value[1:])
    if isinstance(value, (tuple, list)):
        return type(value)([again(value[0], recorded, augmentation), *value[1:]])
    if not isinstance(value, Tensor):
        first = next(iter(value))
        return type(value)(**{**value, first: again(value[first], recorded, augmentation)})
    if isinstance(augmentation, Transformed):
        return _redrawn(value, recorded, augmentation)
    assert isinstance(augmentation, DeepAugment)
    _use_up(augmentation, value)
    noise, place = recorded.noise, augmentation.place
    assert noise is not None
    index = slices(recorded.rows, value, place)
    if noise.shape[place.dim] == value.shape[place.dim]:
        noise = noise.index_select(place.dim, index)  # a sparse step draws noise for the augmented rows alone
    dropped = value.index_select(place.dim, index) * noise
    stopped = dropped.detach() if augmentation.stop_grad else dropped
    # not ``index_copy``, which lays it out anew: the model's own dropout draws in the order of memory
    return value.clone().index_copy_(place.dim, index, stopped.to(value.dtype))


def _redrawn(value: Tensor, recorded: Recorded, augmentation: Transformed) -> Tensor:
    """Row by row, each augmented one as the transform gives it with the same random numbers."""
    place, transform = augmentation.place, augmentation.transform
    _set_state(recorded.state, value.device)
    if not recorded.changed:
        return value
    source = value.detach() if augmentation.stop_grad else value
    whole = place.samples(source)
    order = range(len(recorded.rows)) if recorded.index is None else recorded.index.tolist()
    some = torch.stack([whole[i] for i in order])
    draws = transform.draw(some, augmentation._context(recorded.index, len(recorded.rows), lambda: whole))
    out = transform(some, draws)
    if augmentation.stop_grad:
        out = out.detach()
    at = {row: i for i, row in enumerate(order)}
    plain = place.samples(value)
    mixed = [out[at[i]] if augmented else plain[i] for i, augmented in enumerate(recorded.rows.tolist())]
    return place.restored(torch.stack(mixed), value)


def _use_up(augmentation: DeepAugment, value: Any) -> None:
    """Draw what the augmentation drew, so that the model's own dropout draws the same."""
    h = first_tensor(value)
    augmentation.draw_rows(augmentation.place.count(h.shape), h.device)
    augmentation.draw_noise(h)


def slices(rows: Tensor, value: Tensor, place: Rows) -> Tensor:
    """The indices of the chosen rows' slices: by the definition, index ``(o * B + b) * inner + i`` is row ``b``'s."""
    index = torch.arange(value.shape[place.dim], device=value.device)
    if isinstance(place, Members):
        return index[rows.to(value.device)[place.told()]]
    return index[rows.to(value.device)[index // place.inner % len(rows)]]


def _state(device: torch.device) -> tuple[Tensor, ...]:
    own = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *own)


def _set_state(state: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
