"""Rows are samples: where the data of every sample lie in a value, and how to mask, take and join them there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from graphaug.errors import BatchError


class Counted:
    """How many samples a call of the model has, by its inputs, for what in it knows where they lie in a value."""

    def __init__(self) -> None:
        self._eager: dict[int, int | None] = {}  # by thread
        self._traced: int | None = None

    @property
    def samples(self) -> int | None:
        """The number, or None: there is no call, or its inputs do not tell."""
        return self._traced if torch.compiler.is_compiling() else self._eager.get(get_ident())

    def tell(self, samples: int | None) -> None:
        """Say it to what runs next in this thread; None ends the call."""
        if torch.compiler.is_compiling():
            self._traced = samples
        elif samples is None:
            self._eager.pop(get_ident(), None)
        else:
            self._eager[get_ident()] = samples

    def __reduce__(self) -> tuple[Any, ...]:
        return Counted, ()


@dataclass(frozen=True)
class Rows:
    """Samples along one dimension: at index ``(o * B + b) * inner + i`` of it lies sample ``b`` of ``B``.

    ``Rows(0)`` is an ordinary batch, ``Rows(1)`` a sequence-first one, ``Rows(0, 1, 5)`` holds five frames or windows
    of each sample behind each other, ``Rows(0, 2)`` two views, one batch behind the other. What lies in the slices of
    a sample depends on that sample alone, and not on ``b`` or ``B``.

    Attributes:
        dim: the dimension.
        outer: how many times the whole batch stands behind each other along it.
        inner: how many neighbours a sample has there.
        uniform: every layout of that many slices fits: they are equal, or drawn independently of each other.
        counted: what every call tells, where the value holds as many samples as the inputs; how many slices each has is
            known of the example alone.
    """

    dim: int
    outer: int = 1
    inner: int = 1
    uniform: bool = False
    counted: Counted | None = field(default=None, compare=False, repr=False)

    def at(self, dim: int) -> Rows:
        """The same rows along another dimension."""
        return Rows(dim, self.outer, self.inner, self.uniform)

    @property
    def slices(self) -> int:
        """How many slices along the dimension belong to each sample."""
        return self.outer * self.inner

    @property
    def is_plain(self) -> bool:
        """Whether every sample is one slice."""
        return self.outer == self.inner == 1

    def count(self, shape: tuple[int, ...] | torch.Size) -> int:
        """The number of samples in a value of this shape."""
        return shape[self.dim] // self.slices

    def check(self, shape: tuple[int, ...] | torch.Size, samples: int | None = None) -> None:
        """Raise ``BatchError`` unless a value of this shape has so many samples, by default those of the call."""
        size = shape[self.dim]
        if samples is None and self.counted is not None:
            samples = self.counted.samples
        if samples is None and size % self.slices == 0:
            return
        if samples is not None and size == samples * self.slices:
            return
        each = f"{self.slices} slices" if self.slices > 1 else "one slice"
        there = "" if samples is None else f" for {samples} samples"
        raise BatchError(
            f"a site's value of shape {'×'.join(map(str, shape))} has {size} slices of dimension {self.dim}{there}; in "
            f"the example each sample had {each}, and which are whose is told by that alone. Rewrite the model with "
            "example_inputs of these sizes, bring the inputs to the example's, or choose another site."
        )

    def describe(self, shape: tuple[int, ...] | None) -> str:
        """In words: ``dimension 1 of 7×6×16, 6 samples``."""
        if shape is None:
            return f"dimension {self.dim}"
        text = f"dimension {self.dim} of {'×'.join(map(str, shape))}, {self.count(shape)} samples"
        if self.inner > 1:
            text += f" of {self.inner} slices each"
        return text + (f", {self.outer} times" if self.outer > 1 else "")

    def over(self, mask: Tensor, value: Tensor) -> Tensor:
        """A mask of samples, of shape (B,), as one that broadcasts against the value."""
        if not self.is_plain:
            mask = mask.view(1, -1, 1).expand(self.outer, -1, self.inner).reshape(-1)
        return mask.view(*[1] * self.dim, -1, *[1] * (value.dim() - 1 - self.dim))

    def take(self, value: Tensor, index: Tensor) -> Tensor:
        """The samples at ``index``, in that order, each with all of its slices."""
        if self.is_plain:
            return value.index_select(self.dim, index)
        parts: Tensor = value.unflatten(self.dim, (self.outer, -1, self.inner))
        return parts.index_select(self.dim + 1, index).flatten(self.dim, self.dim + 2)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """The samples of one value before those of another."""
        if self.outer == 1:
            return torch.cat([first, second], self.dim)
        parts = [t.unflatten(self.dim, (self.outer, -1)) for t in (first, second)]
        return torch.cat(parts, self.dim + 1).flatten(self.dim, self.dim + 1)

    def first(self, value: Tensor) -> Tensor:
        """The value with the samples in dimension 0, all that is a sample's behind it."""
        parts: Tensor = value.movedim(self.dim, 0).unflatten(0, (self.outer, -1, self.inner))
        return parts.movedim(1, 0)

    def samples(self, value: Tensor) -> Tensor:
        """The value as rows of shape (n, …), a row a sample: what a transform is given.

        Channels keep their place: dimension 1 of rank 4 and above, else the last. All other dimensions are positions,
        a sample's slices (frames, windows) among them; up to rank 3 they become one, the tokens.
        """
        if self == Rows(0, uniform=self.uniform):
            return value
        parts, order = self._parted(value)
        moved = parts.permute(order)
        return moved.flatten(1, -2) if value.dim() < 4 and moved.dim() > 3 else moved

    def restored(self, rows: Tensor, value: Tensor) -> Tensor:
        """Rows as `samples` gives them, back where they lie in ``value``; as many of them as there are."""
        if self == Rows(0, uniform=self.uniform):
            return rows
        parts, order = self._parted(value)
        if value.dim() < 4 and parts.dim() > 3:
            rows = rows.unflatten(1, [parts.shape[i] for i in order[1:-1]])
        back = rows.permute([order.index(i) for i in range(len(order))])
        slices = [n for n in (self.outer, self.inner) if n > 1]
        return back.flatten(self.dim, self.dim + len(slices)) if slices else back

    def _parted(self, value: Tensor) -> tuple[Tensor, list[int]]:
        """The value with a sample's slices in dimensions of their own, and the order of dimensions of `samples`."""
        rank, channel = value.dim(), channel_beside(value.dim(), self.dim)
        sizes = [*([self.outer] if self.outer > 1 else []), -1, *([self.inner] if self.inner > 1 else [])]
        parts = value.unflatten(self.dim, sizes) if len(sizes) > 1 else value
        sample = self.dim + (self.outer > 1)
        channel += len(sizes) - 1 if channel > self.dim else 0
        others = [i for i in range(parts.dim()) if i not in (sample, channel)]
        return parts, [sample, channel, *others] if rank > 3 else [sample, *others, channel]

    def repeated(self, value: Tensor, times: int) -> Tensor:
        """The samples so many times: the whole batch, then all of it again."""
        if self.outer == 1:
            return torch.cat([value] * times, self.dim)
        parts = value.unflatten(self.dim, (self.outer, -1))
        return torch.cat([parts] * times, self.dim + 1).flatten(self.dim, self.dim + 1)


class Owner:
    """Which sample every entry of dimension 0 belongs to: an input of the model, told anew in every call.

    Args:
        name: of the input, an integer tensor with one entry for each of them (``batch`` of torch_geometric).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.index: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Owner, (self.name,)


@dataclass(frozen=True)
class Members(Rows):
    """Samples of any number of entries along dimension 0, as nodes of graphs are: each says which is its own.

    Attributes:
        owner: the input that tells.
    """

    owner: Owner = field(default_factory=lambda: Owner(""))

    def told(self) -> Tensor:
        """The sample of every entry.

        Raises:
            BatchError: no call has told.
        """
        if self.owner.index is None:
            raise BatchError(f"which sample an entry belongs to is told by the input '{self.owner.name}'.")
        return self.owner.index

    @property
    def is_plain(self) -> bool:
        """Never: a sample may be any number of slices."""
        return False

    def count(self, shape: tuple[int, ...] | torch.Size) -> int:
        """The number of samples; those behind the last one that has an entry are not known."""
        index = self.told()
        if len(index) != shape[0]:
            raise BatchError(
                f"the input '{self.owner.name}' tells of {len(index)} entries, and the site's value has {shape[0]}."
            )
        return int(index.max()) + 1 if len(index) else 0

    def describe(self, shape: tuple[int, ...] | None) -> str:
        """In words: ``samples are told by 'batch', for each of 17 along dimension 0``."""
        each = "entry" if shape is None else f"of {shape[0]}"
        return f"samples are told by '{self.owner.name}', for each {each} along dimension 0"

    def over(self, mask: Tensor, value: Tensor) -> Tensor:
        """A mask of samples, of shape (B,), as one that broadcasts against the value."""
        return mask[self.told()].view(-1, *[1] * (value.dim() - 1))

    def check(self, shape: tuple[int, ...] | torch.Size, samples: int | None = None) -> None:
        """Nothing: a sample may have any number of entries."""

    def take(self, value: Tensor, index: Tensor) -> Tensor:
        """The entries of the samples at ``index``, in the order of the value."""
        return value[torch.isin(self.told(), index)]


BATCH = Rows(0)
"""An ordinary batch: every index of dimension 0 is a sample."""


def channel_beside(rank: int, rows: int) -> int:
    """The dimension of the channels: the one behind the rows of rank 4 and above, else the last that holds no rows."""
    channel = (rows + 1) % rank if rank > 3 else rank - 1
    return rank - 2 if channel == rows else channel


def counted(place: Rows, shape: Sequence[int] | None, samples: int) -> Rows:
    """The same place, checked in every call, if the example's value there holds the samples of its inputs."""
    if shape is None or not samples or shape[place.dim] != samples * place.slices:
        return place
    return replace(place, counted=Counted())


def samples_of(values: Mapping[str, Any], dims: Mapping[str, Sequence[int | None]]) -> int | None:
    """How many samples the inputs of a call hold; None if they do not tell.

    Args:
        values: the inputs by name.
        dims: of each, the dimension of the samples in every tensor in it; None where there is none.
    """
    found: int | None = None
    for name, of in dims.items():
        value = values.get(name)
        leaves = [value] if isinstance(value, Tensor) else tree_leaves(value)
        for leaf, dim in zip(leaves, of, strict=False) if len(leaves) == len(of) else ():
            if dim is None or not isinstance(leaf, Tensor) or leaf.dim() <= dim:
                continue
            size = leaf.shape[dim]
            if found is None or found == 1:
                found = size
            elif size not in (1, found):
                return None
    return found


def tell(modules: Iterable[Any], values: Mapping[str, Any], samples: int | None) -> list[Counted]:
    """Tell what among some modules has rows of a call's samples: how many there are, or which owns every entry.

    Returns:
        Whom to tell that the call has ended.
    """
    counting = []
    for module in modules:
        place = getattr(module, "place", None)
        if isinstance(place, Members):
            place.owner.index = values[place.owner.name]
        elif isinstance(place, Rows) and place.counted is not None:
            place.counted.tell(samples)
            counting.append(place.counted)
    return counting
