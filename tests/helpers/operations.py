"""Every operation of torch's own test database against the definition: perturb one row, and look at the others."""

from __future__ import annotations

import contextlib
import gc
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphaug.proof.independence.places import Rows
from graphaug.proof.independence.rows import prove

SAMPLES, PLACES = 3, 4
"""At most so many samples of an operation, and so many places of rows in each."""


@dataclass
class Checked:
    """What came out for an operation.

    Attributes:
        proved: how many calls the rules call independent, all of which were checked.
        refused: how many they do not.
        wrong: those that the definition contradicts, in words.
    """

    proved: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """What is alive now is no garbage in this block, and torch keeps no shapes of what is computed in it.

    A proof looks for what was left behind: not among the thousands of samples of a database. And hardly two of those
    have the same shapes, which torch would hold for good: a gigabyte of them.
    """
    gc.collect()
    gc.freeze()
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        gc.unfreeze()


def database_samples(info: Any, dtype: torch.dtype, most: int) -> list[Any]:
    """The first samples of an entry of the database.

    Its own `OpInfo.sample_inputs` looks for the test that asks, through the whole stack for each sample: a seventh of
    the time of the tests.
    """
    return list(itertools.islice(info.sample_inputs_func(info, "cpu", dtype, False), most))


def check(info: Any, samples_of: int = SAMPLES, places_of: int = PLACES) -> Checked:
    """Check an entry of the database on its samples in float64, or in int64 where it takes no floats.

    Args:
        info: the entry.
        samples_of: at most so many samples of it.
        places_of: at most so many places of rows in each.
    """
    found = Checked()
    dtype = torch.float64 if torch.float64 in info.dtypes else torch.int64
    if dtype not in info.dtypes:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            samples = database_samples(info, dtype, 40)
        except Exception:  # some need a library or a device that is not here
            return found
        # few of many: spread over the list, whose neighbours are alike
        for sample in samples[:: max(1, len(samples) // samples_of)][:samples_of]:
            for places in itertools.islice(_places(sample), places_of):
                _check(info, sample, places, found)
    return found


def _flat(sample: Any) -> tuple[list[Any], Any]:
    return tree_flatten((sample.input, tuple(sample.args), dict(sample.kwargs)))


def _places(sample: Any) -> Iterator[dict[int, int]]:
    """Which tensor has its rows where: each alone, and all that are as long along the same dimension."""
    leaves, _ = _flat(sample)
    tensors = [(i, t) for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.dim() > 0]
    seen: list[dict[int, int]] = []
    for i, t in tensors:
        for dim in range(t.dim()):
            if t.shape[dim] < 2:
                continue
            alike = {j: dim for j, u in tensors if u.dim() > dim and u.shape[dim] == t.shape[dim]}
            # aligned from the right, as broadcasting does
            back = {
                j: dim - t.dim() + u.dim()
                for j, u in tensors
                if dim - t.dim() + u.dim() >= 0 and u.shape[dim - t.dim()] == t.shape[dim]
            }
            for found in ({**alike, i: dim}, {**back, i: dim}, {i: dim}):
                if found not in seen:
                    seen.append(found)
                    yield found


def _check(info: Any, sample: Any, places: dict[int, int], found: Checked) -> None:
    leaves, spec = _flat(sample)
    count = next(leaves[i].shape[d] for i, d in places.items())

    def run(values: list[Any]) -> list[Tensor]:
        given, args, kwargs = tree_unflatten(values, spec)
        torch.manual_seed(0)
        out = info.op(given, *args, **kwargs)
        return [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]

    named = {str(i): leaf.clone() if isinstance(leaf, Tensor) else leaf for i, leaf in enumerate(leaves)}
    dims = {id(named[str(i)]): d for i, d in places.items()}
    proofs = prove(nn.Module(), lambda v: _unseeded(info, spec, list(v.values())), named, dims)
    places_of = [p.place for p in proofs if p.verdict == "proved"]
    if len(places_of) < len(proofs) or not places_of:
        found.refused += 1
        return
    try:
        with torch.no_grad():
            outputs = run([t.clone() if isinstance(t, Tensor) else t for t in leaves])
    except Exception:
        return  # the operation does not take it
    found.proved += 1
    said = _violated(run, leaves, places, count, outputs, places_of)
    if said:
        found.wrong.append(
            f"{info.name}: rows {places} of {[getattr(t, 'shape', t) for t in leaves]}: {said}"
        )


def _unseeded(info: Any, spec: Any, values: list[Any]) -> list[Tensor]:
    given, args, kwargs = tree_unflatten(values, spec)
    return [t for t in tree_flatten(info.op(given, *args, **kwargs))[0] if isinstance(t, Tensor)]


def owner(place: Rows, count: int) -> Tensor:
    """The row that every index of the dimension belongs to, by the definition."""
    index = torch.arange(place.outer * count * place.inner)
    return index // place.inner % count


def _violated(
    run: Any, leaves: list[Any], places: dict[int, int], count: int, outputs: list[Tensor], found: list[Any]
) -> str:
    """How the definition is violated, or an empty string."""
    for out, place in zip(outputs, found, strict=True):
        if out.dim() <= place.dim or out.shape[place.dim] != place.outer * place.inner * count:
            return f"the place {place} does not fit {tuple(out.shape)}"
    for row in (0, count - 1):
        moved = _moved(leaves, places, row)
        try:
            with torch.no_grad():
                after = run(moved)
        except Exception:
            continue
        for out, other, place in zip(outputs, after, found, strict=True):
            others = (owner(place, count) != row).nonzero()[:, 0]
            a, b = (t.index_select(place.dim, others) for t in (out, other))
            if a.shape != b.shape or not _close(a, b):
                return f"row {row} reaches others of {place}"
    return _gradients(run, leaves, places, count, found)


def _moved(leaves: list[Any], places: dict[int, int], row: int) -> list[Any]:
    """The inputs with one row replaced by another of the same tensor, or scaled."""
    moved = [t.clone() if isinstance(t, Tensor) else t for t in leaves]
    for i, dim in places.items():
        chosen = moved[i].select(dim, row)
        other = leaves[i].select(dim, (row + 1) % leaves[i].shape[dim])
        chosen.copy_(other * 0.7 if other.is_floating_point() else other)
    return moved


def _gradients(run: Any, leaves: list[Any], places: dict[int, int], count: int, found: list[Any]) -> str:
    """Whether the gradient of one row's output reaches the input of another."""
    taken = {i: leaves[i].clone().requires_grad_() for i in places if leaves[i].is_floating_point()}
    if not taken:
        return ""
    try:
        outputs = run([taken.get(i, t) for i, t in enumerate(leaves)])
    except Exception:
        return ""
    for out, place in zip(outputs, found, strict=True):
        if not out.requires_grad or out.is_complex():
            continue
        mine = (owner(place, count) == 0).nonzero()[:, 0]
        try:
            grads = torch.autograd.grad(
                out.index_select(place.dim, mine).sum(),
                list(taken.values()),
                allow_unused=True,
                retain_graph=True,
            )
        except (RuntimeError, NotImplementedError):
            continue
        for (i, _), grad in zip(taken.items(), grads, strict=True):
            if grad is not None and bool(
                (grad.narrow(places[i], 1, count - 1).nan_to_num().abs() > 1e-9).any()
            ):
                return f"the gradient of row 0 of {place} reaches others"
    return ""


def _close(a: Tensor, b: Tensor) -> bool:
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
