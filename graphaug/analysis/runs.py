"""A finished run, read back for analysis: its settings, its encoder, its numbers, its snapshots."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from graphaug.contrastive.config import PretrainConfig
from graphaug.contrastive.files import make_folder, write_file
from graphaug.contrastive.models import build_model
from graphaug.contrastive.run_dir import on_text
from graphaug.errors import ConfigError, RunDirectoryError

NOT_SETTINGS = ("resolved", "versions")
_SNAPSHOT = re.compile(r"epoch-(\d+)\.safetensors")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: where it is.
        config: its settings.
        resolved: the whole of ``config.yaml``, versions included.
        metrics: a dict an epoch.
        result: what the probes gave; empty if the run did not get that far.
        snapshots: epoch -> file with the encoder's weights, in order.
    """

    path: Path
    config: PretrainConfig
    resolved: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    snapshots: dict[int, Path]

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.name or str(self.path)

    def model(self, weights: Path | None = None) -> nn.Module:
        """The whole model with the weights of the run's end, or of a snapshot.

        Raises:
            RunDirectoryError: the file is missing, or does not fit the model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = weights or self.path / "encoder.safetensors"
        model = build_model(self.config.model)
        try:
            state: dict[str, Tensor] = load_file(file)
            model.load_state_dict(state)
        except (OSError, SafetensorError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0]
            raise RunDirectoryError(
                f"{str(file)!r} is no encoder of {self.config.model!r} that can be read: {said}"
            ) from error
        return model.eval()


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a directory that ``graphaug pretrain`` wrote.

    Raises:
        RunDirectoryError: it is no run, or one that ended before it wrote an encoder.
    """
    import yaml

    directory = Path(path)
    resolved: Any = None
    if not directory.is_dir():
        raise RunDirectoryError(f"{str(directory)!r} is no run directory: there is no such directory.")
    try:
        resolved = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        settings = {k: v for k, v in resolved.items() if k not in NOT_SETTINGS}
        config = PretrainConfig.from_dict(settings)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{str(directory)!r} is no run directory: it holds no config.yaml. 'graphaug pretrain --out' makes one."
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError, ConfigError) as error:
        said = str(error).strip().splitlines()[0]
        raise RunDirectoryError(
            f"{str(directory / 'config.yaml')!r} is no configuration of a run: {said}{on_text(resolved)}"
        ) from error
    found = {
        int(m[1]): file
        for file in sorted(directory.glob("snapshots/*"))
        if (m := _SNAPSHOT.fullmatch(file.name))
    }
    if not (directory / "encoder.safetensors").exists():
        raise RunDirectoryError(
            f"{str(directory)!r} holds no encoder.safetensors: the run did not finish. Let it finish first."
        )
    metrics, file = _lines(directory / "metrics.jsonl"), directory / "result.json"
    if any(not isinstance(line.get("loss"), (int, float)) for line in metrics):
        raise RunDirectoryError(f"{str(directory / 'metrics.jsonl')!r} is damaged: a line has no loss.")
    result = next(iter(_lines(file, whole=True)), {})
    if not isinstance(result.get("few_labels", {}), dict):
        raise RunDirectoryError(f"{str(file)!r} is damaged: few_labels is no table.")
    return Run(directory, config, resolved, metrics, result, dict(sorted(found.items())))


def _lines(file: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """The JSON in a file, one value a line or the file as one; nothing if there is no such file.

    Raises:
        RunDirectoryError: what is there is no JSON, or holds something else than objects.
    """
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    try:
        found = [json.loads(part) for part in ([text] if whole else text.splitlines()) if part.strip()]
    except json.JSONDecodeError as error:
        raise RunDirectoryError(f"{str(file)!r} is damaged: {error}.") from error
    for value in found:
        if not isinstance(value, dict):
            raise RunDirectoryError(
                f"{str(file)!r} is damaged: it holds a {type(value).__name__}, not an object."
            )
    return found


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON; a reader never sees half of it.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    make_folder(file.parent)
    write_file(file, lambda path: path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))
