"""The directory of a run: what it holds, and that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graphaug.errors import RunDirectoryError

FILES = ("config.yaml", "metrics.jsonl", "encoder.safetensors", "result.json", "curves.png")


class RunDirectory:
    """Writes the files of one run; each goes to a temporary file first and is then renamed.

    Args:
        path: of the directory; it is made when the first file is written.
        force: take a directory that is in use; the files of the run in it are removed, other files are left alone.

    Raises:
        RunDirectoryError: the path is a file, or a directory with anything in it while not ``force``.

    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path = Path(path)
        self.metrics: list[dict[str, Any]] = []
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{str(self.path)!r} is a file, not a directory for a run.")
        if not force and self.path.is_dir() and any(self.path.iterdir()):
            run = any((self.path / name).exists() for name in FILES)
            raise RunDirectoryError(
                f"{str(self.path)!r} holds {'another run' if run else 'other files'}. "
                f"Choose another directory, or pass --force (force=True) to {'replace it' if run else 'use it'}."
            )

    def start(self, config: Mapping[str, Any]) -> None:
        """Make the directory, remove a former run's files, and write ``config.yaml``."""
        import yaml

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{str(self.path)!r} cannot be written: {error.strerror or error}."
            ) from error
        self._text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        self.metrics.append(dict(metrics))
        self._text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))

    def result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        self._text("result.json", json.dumps(result, indent=2) + "\n")

    def encoder(self, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``encoder.safetensors``."""
        from safetensors.torch import save_file

        # Safetensors refuses tensors that share memory or are not contiguous.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        self._write("encoder.safetensors", lambda path: save_file(tensors, path, dict(metadata)))

    def figure(self, draw: Callable[[Path], None]) -> None:
        """Write ``curves.png`` with a function that saves a figure under the path it is given."""
        self._write("curves.png", draw)

    def _text(self, name: str, text: str) -> None:
        self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        # The ending is kept, as matplotlib takes the format from it.
        try:
            handle, temporary = tempfile.mkstemp(dir=self.path, prefix=".", suffix="-" + name)
            os.close(handle)
        except OSError as error:
            raise RunDirectoryError(
                f"{str(self.path)!r} cannot be written: {error.strerror or error}."
            ) from error
        try:
            write(Path(temporary))
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, self.path / name)
        except OSError as error:
            raise RunDirectoryError(
                f"{str(self.path / name)!r} cannot be written: {error.strerror or error}."
            ) from error
        finally:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it: mkstemp's 0600 would lock colleagues out."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
