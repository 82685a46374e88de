"""Files that a reader never sees half of: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graphaug.errors import RunDirectoryError, meant, nearest

PART = ".part-"
"""How the name of a file begins while it is written; a kill may leave one behind."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, flush it to the disk and rename it to ``path``.

    Raises:
        RunDirectoryError: it cannot be written; what was at ``path`` is still there.

    """
    try:
        # The ending is kept, as matplotlib takes the format from it.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART, suffix="-" + path.name)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_file` writes a file."""
    write_file(path, lambda new: new.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a value as JSON, as `write_file` writes a file."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def check_target(path: Path | None) -> None:
    """Refuse a file that cannot be made: better before a long computation than behind it; None is none.

    Raises:
        RunDirectoryError: it is a directory, there is none for it, or that is read-only.

    """
    if path is None:
        return
    if path.is_dir():
        raise RunDirectoryError(f"{str(path)!r} is a directory: name a file in it.")
    if not path.parent.is_dir():
        raise RunDirectoryError(
            f"{str(path)!r} cannot be written: there is no directory {str(path.parent)!r}."
        )
    if not os.access(path.parent, os.W_OK):
        raise RunDirectoryError(f"{str(path)!r} cannot be written: {str(path.parent)!r} is read-only.")


def make_folder(path: Path) -> None:
    """Make a directory and those above it; raises ``RunDirectoryError`` if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def runs_beside(path: Path) -> str:
    """The end of a message about a run that is not there: the run beside it whose name is nearest, if one is near."""
    try:
        runs = {p.name: p for p in path.parent.iterdir() if (p / "config.yaml").is_file()}
    except OSError:
        return ""
    return meant(str(runs[name]) for name in nearest(path.name, runs, limit=1))


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Take turns with other processes that name the same file, which is made and stays; yields whether that worked.

    Where files cannot be locked, nobody waits.

    Raises:
        OSError: the file cannot be made.

    """
    with open(lock, "wb") as file:
        locked = False
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        yield locked


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Keep other processes from a directory, by a file in it that is removed afterwards; a kill gives it back too.

    Where files cannot be locked, nobody is kept out.

    Raises:
        RunDirectoryError: another process has it, maybe the rest of a run that was killed.

    """
    with open(lock, "wb") as file:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunDirectoryError(
                    f"another process is training in {str(lock.parent)!r}: wait for it, or end it first."
                ) from error
            except OSError:
                pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> RunDirectoryError:
    """The error for a file or directory that cannot be written."""
    return RunDirectoryError(f"{str(path)!r} cannot be written: {error.strerror or error}.")


def _flush(path: str) -> None:
    # Renamed before its bytes are on the disk, a file can be empty after a power failure.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's umask, which can only be read by setting it: mkstemp's 0600 would lock colleagues out."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
