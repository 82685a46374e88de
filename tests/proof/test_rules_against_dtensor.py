"""The rules against DTensor's sharding propagation: what runs on shards of the batch as they lie lets no rows meet."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch.distributed as dist

pytest.importorskip("expecttest", reason="torch's own database of operations needs it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

from operations import set_aside
from sharding import Sharded, propagated, ruled, two_devices

from graphaug.torch_private import quiet_fakes

STRICTER = {
    "squeeze": "a single row would be squeezed away",
    "squeeze_copy": "a single row would be squeezed away",
    "pixel_shuffle": "of a factor of 1 it is a copy",
    "pixel_unshuffle": "of a factor of 1 it is a copy",
    "slice": "DTensor brings the rows together by itself",
}
"""What the rules refuse although DTensor runs it on shards, and why."""

EXCHANGES = {
    "_scaled_dot_product_flash_attention_for_cpu": "of heads it would not shard on a CPU, each for itself in truth",
    "diag_embed": "it has no strategy but to bring all together; every row's diagonal is its own",
}
"""What DTensor exchanges shards for although no rows meet, and why."""


def _compared(infos: list[Any], samples_of: int, places_of: int) -> tuple[dict[str, int], list[str]]:
    """How many operations agree, by how; and the calls that do not, in words."""
    if dist.is_initialized():
        pytest.skip("another process group is running")
    with quiet_fakes(), two_devices() as mesh:
        calls = propagated(infos, mesh, samples_of, places_of)
    with set_aside():
        found = [(call, _judged(call)) for call in calls]
    agreed: dict[str, set[str]] = {"independent": set(), "meet": set(), "folded": set(), "unknown": set()}
    for call, said in found:
        agreed.get(said, set()).add(str(call.op))
    return {k: len(v) for k, v in agreed.items()}, [f"{c} {said}" for c, said in found if said not in agreed]


def _judged(call: Sharded) -> str:
    """``independent`` or ``meet`` where both say so, ``unknown`` where the rules do not know, or what they say.

    Or ``folded``: rows lie in two batches behind each other, or as several slices each, which no sharding expresses.
    """
    name = str(call.op).split(".")[1]
    proofs = ruled(call)
    verdicts = {p.verdict for p in proofs}
    if "unknown" in verdicts:
        assert all(p.meeting is not None and p.meeting.why for p in proofs if p.verdict == "unknown")
        return "unknown"
    if call.meets and any(p.place is not None and not p.place.is_plain for p in proofs):
        return "folded"
    if call.meets:
        return "but the rules prove them" if verdicts == {"proved"} and name not in EXCHANGES else "meet"
    if verdicts != {"proved"}:
        said = ", ".join(str(p) for p in proofs if p.verdict != "proved")
        return "unknown" if name in STRICTER else f"but by the rules {said}"
    places = [p.place.dim for p in proofs if p.place is not None]
    return "independent" if tuple(places) == call.dims else f"but by the rules along {places}"


@pytest.mark.long
def test_the_rules_agree_with_dtensor_on_a_sample_of_operations() -> None:
    agreed, apart = _compared(op_db[5::40], 1, 3)
    assert not apart, "\n".join(apart)
    assert agreed["independent"] >= 10, agreed


@pytest.mark.long  # every operation that DTensor has a rule for: minutes
def test_the_rules_agree_with_dtensor(capsys: pytest.CaptureFixture[str]) -> None:
    agreed, apart = _compared(op_db, 1, 3)
    with capsys.disabled():
        print(f"\noperations compared with DTensor: {agreed}")
    assert not apart, "\n".join(apart)
    assert agreed["independent"] >= 200, agreed
    assert agreed["meet"] >= 75, agreed
