"""What is read from a checkpoint and does not fit the run that reads it: one error, instead of whatever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from graphaug.errors import CheckpointError


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Turn what goes wrong while the state in a checkpoint is taken into an error that names it.

    A checkpoint may be whole, and of another version: a key is missing, a tensor has another shape, a value is of
    another type.

    Args:
        name: of the checkpoint, for the message.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} does not fit this run: {_what(error)}. It is not whole, or was made by another version of "
            "graphaug or of torch, or for another model. Go on with the versions in the run's config.yaml, choose "
            "another directory, or pass --force (force=True) instead of --resume to begin again."
        ) from error


def _what(error: Exception) -> str:
    """The error in one line: torch's list of what differs begins behind a heading."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}" if error.args else "something is missing in it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else "".join(lines[:1])
    return said.rstrip(". ") or type(error).__name__
