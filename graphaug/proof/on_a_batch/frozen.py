"""That nothing in a frozen region is trained."""

from __future__ import annotations

from collections.abc import Iterator

from graphaug.errors import VerificationError, listed, several
from graphaug.surgery.module import AugmentedModule


def check_frozen(aug: AugmentedModule) -> None:
    """Check that nothing in the frozen region is trained, as the region is now.

    Raises:
        VerificationError: a parameter that was frozen is, or one that came there since.
    """
    if trained := aug._parts.trained_in_frozen():
        raise VerificationError(
            f"frozen parameters are trainable: {listed(trained)}, put there or made trainable since. Set requires_grad "
            "to False, or rewrite again, graphaug.rewrite(graphaug.strip(aug), ...)."
        )


def said_of_frozen(aug: AugmentedModule) -> Iterator[str]:
    """How many parameters are frozen, of those that are still there, as a claim."""
    if aug._parts.frozen is not None:
        count = aug._parts.frozen.count(aug.original)
        receive = "receives" if count == 1 else "receive"
        yield f"{several(count, 'frozen parameter')} {receive} no gradient"
