"""The rules against the definition, over torch's own database of operations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("expecttest", reason="torch's own database of operations needs it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

from operations import check, set_aside

UNINITIALISED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
}
"""What these return is nobody's data, in two calls not the same."""
COVERED = [info for info in op_db if info.name not in UNINITIALISED]


@pytest.fixture(autouse=True)
def _samples_set_aside() -> Iterator[None]:
    with set_aside():
        yield


def _wrong(entries: list[Any], *limits: int) -> tuple[set[str], list[str]]:
    """Names of the operations with a call that is proved and was checked, and what the definition contradicts."""
    found = [(info.name, check(info, *limits)) for info in entries]
    return {name for name, c in found if c.proved}, [w for _, c in found for w in c.wrong]


def test_no_rule_contradicts_the_definition_on_a_sample_of_operations() -> None:
    """Two samples of every twentieth entry of the database; the whole of it is left to the long tests."""
    covered, wrong = _wrong(COVERED[7::20], 2, 2)
    assert not wrong, "\n".join(wrong)
    assert len(covered) >= 20


@pytest.mark.long  # every operation on a dozen of pairs of inputs: minutes
def test_no_rule_contradicts_the_definition_on_any_operation(capsys: pytest.CaptureFixture[str]) -> None:
    covered, wrong = _wrong(COVERED)
    with capsys.disabled():
        print(
            f"\nthe rules cover {len(covered)} of {len({i.name for i in COVERED})} operations of torch's database"
        )
    assert not wrong, "\n".join(wrong)
    assert len(covered) >= 400
