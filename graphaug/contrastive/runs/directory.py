"""The directory of a run: what it holds, and that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from graphaug.contrastive.config.settings import Settings
from graphaug.contrastive.config.yaml_files import no_yaml, read_yaml
from graphaug.contrastive.devices import world_size
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.files import PART, cannot_write, make_folder, only_one, write_file, write_text
from graphaug.errors import CheckpointError, ConfigError, RunDirectoryError, an

FILES = ("config.yaml", "metrics.jsonl", "encoder.safetensors", "result.json", "curves.png")
NOT_SETTINGS = ("resolved", "versions")
"""What ``config.yaml`` says beside the settings: what they came to, and with which versions."""

FOLDERS = ("checkpoints", "snapshots", "tensorboard", "encoder", "best")
"""What a run may hold besides its files: checkpoints while it lasts, an encoder of text, and what was asked for."""

LOCK = ".lock"
"""Held by the process that writes; it is removed when the training is done."""


_LONGER = (
    "\nA run cannot be made longer or shorter: its learning rate, and whatever else changes on the way, follow the "
    "number of epochs from the first step on. What is possible: resume it with its own number (leave --epochs out), "
    "or begin another run with its weights (--init, into another directory)."
)


class RunDirectory:
    """Writes the files of one run; each goes to a temporary file first and is then renamed.

    Args:
        path: of the directory; it is made when the first file is written.
        force: take a directory that is in use; the files of the run in it are removed, other files are left alone, and
            a directory with files or folders of such names that is no run is refused.
        resume: take a directory that holds a run, to go on with it.

    Raises:
        RunDirectoryError: the path is a file, or a directory with anything in it while neither ``force`` nor, if that
            is a run, ``resume``; or something that a run would replace, and that is of no run.

    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False, resume: bool = False) -> None:
        self._take(path)
        if force:
            self._check_replaceable()
        elif self.path.is_dir() and any(self._counts(p) for p in self.path.iterdir()):
            run = any((self.path / name).exists() for name in FILES)
            if run and resume:
                return
            replace = "replace it" if run else "use it"
            also = ", or --resume (resume=True) to go on with it" if run else ""
            raise RunDirectoryError(
                f"{str(self.path)!r} holds {'another run' if run else 'other files'}. "
                f"Choose another directory, or pass --force (force=True) to {replace}{also}."
            )

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """A directory to read from, or one that was taken before."""
        found = cls.__new__(cls)
        found._take(path)
        return found

    def _take(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics: list[dict[str, Any]] = []
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{str(self.path)!r} is a file, not a directory for a run.")

    @staticmethod
    def _counts(file: Path) -> bool:
        return file.name != LOCK and not file.name.startswith(PART)

    def _check_replaceable(self) -> None:
        """Refuse to remove what no run of ours has written."""
        try:
            ours = {"resolved", "versions"} <= (self.settings() or {}).keys()
        except ConfigError:
            ours = False
        found = [name for name in (*FILES, *FOLDERS) if (self.path / name).exists()]
        if found and not ours:
            raise RunDirectoryError(
                f"{str(self.path)!r} holds {', '.join(found)}, and no run of graphaug's that --force (force=True) "
                "could replace. Choose another directory."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing here; a process that is killed gives it back.

        Raises:
            RunDirectoryError: one is writing, maybe the rest of a run that was killed.

        """
        make_folder(self.path)
        with only_one(self.path / LOCK):
            yield

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def settings(self) -> dict[str, Any] | None:
        """What ``config.yaml`` says, or None if there is none.

        Raises:
            ConfigError: it is no mapping.

        """
        import yaml

        try:
            found = read_yaml(self.path / "config.yaml")
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(no_yaml(self.path / "config.yaml", error)) from error
        if not isinstance(found, dict):
            raise ConfigError(f"{str(self.path / 'config.yaml')!r} does not hold settings.")
        return found

    def finished(self) -> dict[str, Any] | None:
        """What ``result.json`` says, or None if the run has not come to its end.

        Raises:
            RunDirectoryError: it is damaged.

        """
        file = self.path / "result.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError(f"it holds {an(found)}, not an object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunDirectoryError(
                f"{str(file)!r} is damaged: {error}. Remove it to go on with the run."
            ) from error
        return found

    def resumed(
        self, kind: type[Settings], wanted: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Check that the run here, if there is one, can go on as wanted; the result and metrics of a finished one.

        Its checkpoints, which a kill may have left, are removed then.

        Args:
            kind: of its settings.
            wanted: the settings to go on with.
            facts: what is known of the data, as in ``resolved`` of ``config.yaml``; what the run did not write down is
                not compared.

        Raises:
            ConfigError: it has other settings, or other data; the message lists the differences.
            CheckpointError: it is not finished, and makes no checkpoints that it could go on from.

        """
        settings = self.check_settings(kind, wanted)
        if settings is None:
            return None
        known = _resolved(settings)
        if found := [
            f"{name}: {known[name]!r} → {value!r}"
            for name, value in (facts or {}).items()
            if name in known and known[name] != value
        ]:
            raise ConfigError(
                f"the run in {str(self.path)!r} has other data:\n    " + "\n    ".join(found) + "\n"
                "Resume with the data, and the code of the model, that it began with, or choose another directory."
            )
        result = self.finished()
        if result is None:
            if settings.get("checkpoint_every") == 0 and not Checkpoints(self.checkpoints).complete():
                raise CheckpointError(
                    f"the run in {str(self.path)!r} makes no checkpoints (checkpoint_every=0) and cannot go on. "
                    "Choose another directory, or pass --force (force=True) instead of --resume to replace it."
                )
            return None
        file = self.path / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{str(file)!r} of a finished run cannot be read: {error}") from error
        Checkpoints(self.checkpoints).clear()
        return result, lines

    def check_settings(self, kind: type[Settings], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """The settings of the run here, if there is one, which must be those that are wanted.

        ``size=None`` is whatever the data decide, and of ``devices`` the number of processes counts: torchrun brings
        its own.

        Raises:
            ConfigError: they differ; the message lists the differences.

        """
        settings = self.settings()
        if settings is None:
            return None
        asked = {name: value for name, value in wanted.items() if name != "size" or value is not None}
        if _resolved(settings).get("processes") == world_size(asked.get("devices", 1)):
            asked.pop("devices", None)
        if found := kind.differences(settings, asked):
            raise ConfigError(
                f"the run in {str(self.path)!r} has other settings:\n    " + "\n    ".join(found) + "\n"
                "Resume without changing them, or choose another directory."
                + (_LONGER if any(line.startswith("epochs:") for line in found) else "")
            )
        return settings

    def begins_again(self) -> bool:
        """Whether the run here, which is not finished, has nothing to go on from but makes checkpoints."""
        settings = self.settings()
        return (
            settings is not None
            and settings.get("checkpoint_every") != 0
            and self.finished() is None
            and not Checkpoints(self.checkpoints).complete()
        )

    def start(self, config: Mapping[str, Any]) -> None:
        """Make the directory, remove a former run's files, and write ``config.yaml``."""
        import yaml

        make_folder(self.path)
        try:
            # The result first: without it a half-removed run does not pass for a finished one. ``config.yaml`` is
            # never missing, so that a kill in between leaves what can be told to be a run.
            for name in ("result.json", *(name for name in FILES if name != "config.yaml")):
                (self.path / name).unlink(missing_ok=True)
            for name in FOLDERS:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def tidy(self) -> None:
        """Remove what a kill left of half-written files."""
        for part in (*self.path.glob(PART + "*"), *self.path.glob(f"snapshots/{PART}*")):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        self.metrics.append(dict(metrics))
        self._text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))

    def result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        self._text("result.json", json.dumps(result, indent=2) + "\n")

    def encoder(self, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``encoder.safetensors``."""
        _save(self.path / "encoder.safetensors", state, metadata)

    def snapshot(self, epoch: int, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``snapshots/epoch-0003.safetensors``, in the form of ``encoder.safetensors``."""
        make_folder(self.path / "snapshots")
        _save(self.path / "snapshots" / f"epoch-{epoch:04d}.safetensors", state, metadata)

    def figure(self, draw: Callable[[Path], None]) -> None:
        """Write ``curves.png`` with a function that saves a figure under the path it is given."""
        write_file(self.path / "curves.png", draw)

    def _text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = settings.get("resolved")
    return found if isinstance(found, dict) else {}


def _save(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save

    # Safetensors refuses tensors that share memory or are not contiguous.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    content = save(tensors, dict(metadata))
    write_file(path, lambda temporary: temporary.write_bytes(content))
