"""A finished run, read back for analysis: its settings, its encoder, its numbers, its snapshots."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.config.settings import Settings
from graphaug.contrastive.runs.directory import NOT_SETTINGS
from graphaug.contrastive.runs.files import runs_beside
from graphaug.errors import ConfigError, RunDirectoryError, an
from graphaug.text.config import SimCSEConfig
from graphaug.vision.config import PretrainConfig
from graphaug.vision.models import build_model
from graphaug.vision.weights import warn_if_edited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graphaug.text.simcse import SimCSE


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: where it is.
        config: its settings.
        resolved: the whole of ``config.yaml``, versions included.
        metrics: a dict a line: an epoch of a run on images, some steps of one on text.
        result: what came out; empty if the run did not get that far.
        snapshots: epoch, or step, -> the encoder's weights then: a file, or a directory of transformers'; in order.
    """

    path: Path
    config: Settings
    resolved: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    snapshots: dict[int, Path]

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.name or str(self.path)


@dataclass(frozen=True)
class ImageRun(Run):
    """A run of ``graphaug pretrain``."""

    config: PretrainConfig

    def model(self, weights: Path | None = None) -> nn.Module:
        """The whole model with the weights of the run's end, or of a snapshot.

        Raises:
            RunDirectoryError: the file is missing, or does not fit the model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = weights or self.path / "encoder.safetensors"
        warn_if_edited(self.path)
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


@dataclass(frozen=True)
class TextRun(Run):
    """A run of ``graphaug simcse``."""

    config: SimCSEConfig

    def model(self, directory: Path | None = None) -> tuple[SimCSE, PreTrainedTokenizerBase]:
        """The encoder as it was trained, in eval mode, of the run's end or of a snapshot, and its tokenizer.

        Its sites have the names that they had in training; of the head, which a run does not keep, eval mode needs
        no weights.

        Raises:
            EncoderError: it cannot be loaded.
        """
        from graphaug.text.encoders.files import RUN
        from graphaug.text.encoders.load import load_trainable
        from graphaug.text.simcse import SimCSE

        encoder, tokenizer, _ = load_trainable(directory or self.path / RUN)
        with torch.random.fork_rng(devices=[]):  # the head draws its weights
            return SimCSE(encoder).eval(), tokenizer


@dataclass(frozen=True)
class _Kind:
    """What tells runs of one command from those of another."""

    command: str
    run: type[Run]
    settings: type[Settings]
    encoder: str
    snapshot: re.Pattern[str]


_IMAGES = _Kind(
    "pretrain", ImageRun, PretrainConfig, "encoder.safetensors", re.compile(r"epoch-(\d+)\.safetensors")
)
_TEXT = _Kind("simcse", TextRun, SimCSEConfig, "encoder/config.json", re.compile(r"step-(\d+)"))


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a directory that ``graphaug pretrain`` or ``graphaug simcse`` wrote.

    Raises:
        RunDirectoryError: it is no run, or one that ended before it wrote an encoder.
    """
    import yaml

    from graphaug.contrastive.config.yaml_files import read_yaml

    directory = Path(path)
    if not directory.is_dir():
        what = "it is a file" if directory.exists() else "there is no such directory"
        of_model = directory.name.partition(":")[0].endswith(".py")
        hint = (
            " A model is looked at by 'graphaug sites FILE.py:NAME'." if of_model else runs_beside(directory)
        )
        raise RunDirectoryError(f"{str(directory)!r} is no run directory: {what}.{hint}")
    try:
        resolved = read_yaml(directory / "config.yaml")
        if not isinstance(resolved, dict):
            raise ConfigError(f"it holds {an(resolved)}, not settings")
        settings = {k: v for k, v in resolved.items() if k not in NOT_SETTINGS}
        kind = _TEXT if "from_config" in settings else _IMAGES
        config = kind.settings.from_dict(settings)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{str(directory)!r} is no run directory: it holds no config.yaml. 'graphaug pretrain --out' and "
            "'graphaug simcse --out' make one."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        said = str(error).strip().splitlines()[0]
        raise RunDirectoryError(
            f"{str(directory / 'config.yaml')!r} is no configuration of a run: {said}"
        ) from error
    found = {
        int(m[1]): file
        for file in sorted(directory.glob("snapshots/*"))
        if (m := kind.snapshot.fullmatch(file.name))
    }
    if not (directory / kind.encoder).exists():
        raise RunDirectoryError(
            f"{str(directory)!r} holds no {kind.encoder}: the run did not finish. Let it finish first: "
            f"'graphaug {kind.command} --resume'."
        )
    metrics, file = _lines(directory / "metrics.jsonl"), directory / "result.json"
    needed = ("loss", "step") if kind is _TEXT else ("loss",)
    for name in needed:
        if any(not isinstance(line.get(name), (int, float)) for line in metrics):
            raise RunDirectoryError(f"{str(directory / 'metrics.jsonl')!r} is damaged: a line has no {name}.")
    result = next(iter(_lines(file, whole=True)), {})
    for name in ("few_labels", "best_on_dev"):
        if not isinstance(result.get(name, {}), dict):
            raise RunDirectoryError(f"{str(file)!r} is damaged: {name} is no table.")
    return kind.run(directory, config, resolved, metrics, result, dict(sorted(found.items())))


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
            raise RunDirectoryError(f"{str(file)!r} is damaged: it holds {an(value)}, not an object.")
    return found
