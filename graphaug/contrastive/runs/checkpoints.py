"""Checkpoints that survive a kill, a full disk and a damaged file: each whole, checked, and never the only one."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphaug.contrastive.runs.files import PART, make_folder, write_file
from graphaug.errors import CheckpointError, an

_NAME = re.compile(r"step-(\d+)\.pt")


class DamagedCheckpoint(UserWarning):
    """A checkpoint did not pass its checksum, and the one before it is used."""


@dataclass(frozen=True)
class Checkpoint:
    """A state as it was read: ``path`` of its file, ``step`` in its name, ``state`` as it was saved."""

    path: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: ``step-00000012.pt``, each with a ``step-00000012.pt.sha256``.

    The file is torch's own format, read with ``weights_only=True``; the checksum is in the format of ``sha256sum -c``.
    A checkpoint without its checksum was being written when the process ended, and does not count. When a new one is
    complete, older ones are removed, and those of later steps, which the run has gone back behind.

    Args:
        folder: made when the first is saved.
        keep: how many complete ones are kept.

    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._damaged: set[Path] = set()

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` optimizer steps: tensors, numbers, strings, and containers of them.

        Raises:
            RunDirectoryError: it cannot be written; the message names the last complete checkpoint.

        """
        make_folder(self.folder)
        path = self.folder / f"step-{step:08d}.pt"
        # Through memory: torch's own writer hides the reason when a disk is full.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()
        try:
            write_file(path, lambda temporary: temporary.write_bytes(content))
            checksum = path.with_name(path.name + ".sha256")
            write_file(checksum, lambda temporary: temporary.write_text(f"{digest}  {path.name}\n"))
        except Exception as error:
            kept = self.complete()
            last = f" The last checkpoint is {kept[-1]}." if kept else " There is no earlier checkpoint."
            error.args = (f"{error.args[0]}{last}", *error.args[1:])
            raise
        self._damaged.discard(path)
        self._prune(step)
        return path

    def complete(self) -> list[Path]:
        """Checkpoints with a checksum, oldest first; whether they pass it is not looked at."""
        if not self.folder.is_dir():
            return []
        files = {p.name for p in self.folder.iterdir()}
        return sorted(
            self.folder / name for name in files if _NAME.fullmatch(name) and name + ".sha256" in files
        )

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that passes its checksum; a ``DamagedCheckpoint`` warning names each that does not.

        Raises:
            CheckpointError: there are checkpoints and none of them passes.

        """
        damaged: list[str] = []
        for path in reversed(self.complete()):
            try:
                state = read(path)
            except CheckpointError as error:
                damaged.append(str(error))
                self._damaged.add(path)
                continue
            for message in damaged:
                warnings.warn(f"{message} Going on from {path.name}.", DamagedCheckpoint, stacklevel=2)
            return Checkpoint(path, _step(path), state)
        if damaged:
            raise CheckpointError(f"no checkpoint is left to resume from. {' '.join(damaged)}")
        return None

    def clear(self) -> None:
        """Remove all checkpoints, complete or not, and the folder if nothing else is in it."""
        if not self.folder.is_dir():
            return
        # Checksums first: what is left of an interrupted removal does not count as a checkpoint.
        for pattern in ("step-*.sha256", "step-*.pt", PART + "*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _prune(self, step: int) -> None:
        complete = self.complete()
        # A run that went on from before a damaged file has left that one's future: neither counts among those kept.
        good = [path for path in complete if _step(path) <= step and path not in self._damaged]
        for path in set(complete) - set(good[-self.keep :]):
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        # Of writes that a kill interrupted: temporary files, and files without their checksum.
        current = {p.name for p in complete}
        for path in [*self.folder.glob(PART + "*"), *self.folder.glob("step-*.pt")]:
            if path.name not in current:
                path.unlink(missing_ok=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint that has a checksum.

    Raises:
        CheckpointError: its content is not what was written, or cannot be read.

    """
    try:
        content = path.read_bytes()
        said = path.with_name(path.name + ".sha256").read_text().split()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}.") from error
    if not said:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has an empty {path.name}.sha256: it cannot be checked."
        )
    expected = said[0]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is damaged: its SHA-256 is {found[:12]}…, and {expected[:12]}… was written."
        )
    unreadable = (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        EOFError,
    )
    try:
        # Tensors and plain values only: no code of a file is ever run.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except unreadable as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} passes its checksum, and holds no state that this version can read: it is no "
            "file of torch's with tensors and plain values alone."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {str(path)!r} holds {an(state)}, and no state of a run.")
    return state
