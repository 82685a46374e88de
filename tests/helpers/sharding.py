"""What DTensor's sharding propagation says of operations, and what the rules of rows say of the same calls.

A batch that is sharded along the dimension of its rows is independent rows: where DTensor lets an operation run on the
shards as they lie, rows need not meet; where the shards have to be exchanged, or give partial sums, they do.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from operations import _flat, _places, database_samples
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from graphaug.proof.independence.places import Proof
from graphaug.proof.independence.rows import prove


@dataclass(frozen=True)
class Operand:
    """A tensor of a call: its shape and type, and the dimension that it is sharded along, or None."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    dim: int | None


@dataclass(frozen=True)
class Sharded:
    """What DTensor says of one call of an operation.

    Attributes:
        op: the operation.
        args, kwargs: its arguments, tensors as `Operand`.
        meets: whether shards have to be exchanged, or give partial sums.
        dims: for every output the dimension that it is sharded along, or None.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    meets: bool
    dims: tuple[int | None, ...]

    def __str__(self) -> str:
        said = "meet" if self.meets else f"lie along {self.dims}"
        return f"{self.op}{self.args} {self.kwargs or ''}: rows {said} by DTensor"


@contextlib.contextmanager
def two_devices() -> Iterator[Any]:
    """A mesh of two devices, of which this process is one and the other is none."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def propagated(infos: list[Any], mesh: Any, samples_of: int, places_of: int) -> list[Sharded]:
    """What DTensor says of the operations that entries of torch's database are made of, each kind of call once.

    Args:
        infos: the entries.
        mesh: two devices.
        samples_of: at most so many samples of each.
        places_of: at most so many places of the rows in each sample.
    """
    found: dict[str, Sharded] = {}
    propagator = DTensor._op_dispatcher.sharding_propagator
    plain = propagator.propagate_op_sharding_non_cached

    def recorded(schema: Any) -> Any:
        said = plain(schema)
        call = _call(schema, said)
        if call is not None:
            found.setdefault(str(call), call)
        return said

    propagator.propagate_op_sharding_non_cached = recorded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for info in infos:
                _run(info, mesh, samples_of, places_of)
    finally:
        del propagator.propagate_op_sharding_non_cached
    return list(found.values())


def _run(info: Any, mesh: Any, samples_of: int, places_of: int) -> None:
    """Run an entry on sharded inputs; what DTensor does not do is left."""
    if torch.float64 not in info.dtypes:
        return
    torch.manual_seed(0)
    try:
        samples = database_samples(info, torch.float64, 24)
    except Exception:  # some need a library or a device that is not here
        return
    for sample in samples[:: max(1, len(samples) // samples_of)][:samples_of]:
        for places in itertools.islice(_places(sample), places_of):
            leaves, spec = _flat(sample)
            with contextlib.suppress(Exception):
                if any(leaves[i].shape[d] % 2 for i, d in places.items()):
                    leaves = [_even(t, places.get(i)) for i, t in enumerate(leaves)]
                given = [_distributed(t, mesh, places.get(i)) for i, t in enumerate(leaves)]
                x, args, kwargs = tree_unflatten(given, spec)
                info.op(x, *args, **kwargs)


def _even(value: Any, dim: int | None) -> Any:
    """One row more, so that both devices have as many."""
    return value if dim is None else torch.cat([value, value.narrow(dim, 0, 1)], dim)


def _distributed(value: Any, mesh: Any, dim: int | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    local = value if dim is None else value.chunk(2, dim)[0].clone()
    return DTensor.from_local(local, mesh, [Replicate() if dim is None else Shard(dim)], run_check=False)


def _call(schema: Any, said: Any) -> Sharded | None:
    """A call in our words, or None where it tells nothing: nothing is sharded, or another argument is the reason."""
    specs = [s for s in tree_leaves([schema.args_schema, schema.kwargs_schema]) if _is_spec(s)]
    if not all(_is_plain(s) for s in specs) or not any(s.placements[0].is_shard() for s in specs):
        return None
    moved = False
    if said.redistribute_schema is not None:
        wanted = [s for s in tree_leaves(said.redistribute_schema.args_schema) if _is_spec(s)]
        given = [s for s in tree_leaves(schema.args_schema) if _is_spec(s)]
        changed = [(a, b) for a, b in zip(given, wanted, strict=False) if a.placements != b.placements]
        moved = any(a.placements[0].is_shard() for a, _ in changed)
        if changed and not moved:
            return None
    outputs = [s for s in tree_leaves([said.output_spec]) if _is_spec(s)]
    partial = any(isinstance(s.placements[0], Partial) for s in outputs)
    if not (moved or partial) and (not outputs or not all(type(s.placements[0]) is Shard for s in outputs)):
        return None
    dims = tuple(s.placements[0].dim if s.placements[0].is_shard() else None for s in outputs)
    args, kwargs = tree_map(
        lambda v: _operand(v) if _is_spec(v) else v, (schema.args_schema, schema.kwargs_schema)
    )
    return Sharded(schema.op, tuple(args), dict(kwargs), moved or partial, dims)


def _is_spec(value: Any) -> bool:
    return hasattr(value, "placements")


def _is_plain(spec: Any) -> bool:
    return type(spec.placements[0]) in (Shard, Replicate)


def _operand(spec: Any) -> Operand:
    place = spec.placements[0]
    meta = spec.tensor_meta
    return Operand(tuple(meta.shape), meta.dtype, place.dim if place.is_shard() else None)


def ruled(call: Sharded) -> list[Proof]:
    """What the rules of rows say of a call."""
    tensors: dict[str, Tensor] = {}
    dims: dict[int, int] = {}

    def made(value: Any) -> Any:
        if not isinstance(value, Operand):
            return value
        name = f"x{len(tensors)}"
        tensors[name] = torch.zeros(value.shape, dtype=value.dtype)
        if value.dim is not None:
            dims[id(tensors[name])] = value.dim
        return name

    args, kwargs = tree_map(made, (call.args, call.kwargs), is_leaf=lambda v: isinstance(v, Operand))

    def run(values: dict[str, Any]) -> list[Tensor]:
        given = tree_map(lambda v: values[v] if isinstance(v, str) and v in values else v, (args, kwargs))
        out = call.op(*given[0], **given[1])
        return [t for t in tree_leaves(out) if isinstance(t, Tensor)]

    return prove(nn.Module(), run, tensors, dims)
