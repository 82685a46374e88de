"""Pretraining with Deep Augmentation: what images bring to a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.devices import world_size
from graphaug.contrastive.runs.life import run_task
from graphaug.contrastive.runs.task import Task, Training
from graphaug.contrastive.schedule import learning_rate
from graphaug.errors import ConfigError, DataError
from graphaug.vision.config import PretrainConfig, versions
from graphaug.vision.data.fingerprint import fingerprint
from graphaug.vision.data.images import ImageData, fewer, load
from graphaug.vision.data.validation import held_out
from graphaug.vision.job import image_training
from graphaug.vision.methods.heads import need_lightly
from graphaug.vision.methods.table import METHODS
from graphaug.vision.models import build_model
from graphaug.vision.probes.probe import probe
from graphaug.vision.user_models import code_of
from graphaug.vision.weights import load_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["PretrainResult", "learning_rate", "pretrain", "probe"]


@dataclass(frozen=True)
class PretrainResult:
    """``model``: whole, with its own classifier; ``metrics``: a dict an epoch; ``result``: what the probes gave."""

    model: nn.Module
    metrics: list[dict[str, Any]]
    result: dict[str, Any]


def pretrain(
    config: PretrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    data: ImageData | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> PretrainResult:
    """Pretrain an encoder and probe it.

    All checks come first: nothing is written, and no step is made, before the data are read, the model is rewritten
    and the output directory is free. The caller's random state is left as it was. What is reported is the last epoch.

    Args:
        config: the settings.
        out: directory for ``config.yaml``, ``metrics.jsonl``, ``encoder.safetensors``, ``result.json`` and
            ``curves.png``, and for checkpoints until the run is finished; None writes nothing.
        force: replace another run in ``out``.
        resume: go on with the run in ``out``, if there is one, from its last good checkpoint; on the CPU the result is
            that of an unbroken run, bit for bit. Of a finished run the result is read.
        data: the data, already loaded; by default what ``config.data`` names.
        on_epoch: called with the metrics of each epoch.
        on_step: called behind steps, once a second at most; see `run_task`.

    Returns:
        The result; under torchrun, in processes other than the first, without the probes.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        DataError: the data are missing, unreadable, or fewer than a batch.
        ConfigError: options of Deep Augmentation without a site, no such model, one that cannot take the images' size,
            or the run in ``out`` has other settings or other data; the message lists the differences.
        CheckpointError: no checkpoint of the run is undamaged, or it makes none and cannot go on.
        LaunchError: the processes of several devices cannot be started.
        TrainingDiverged: the loss became NaN or infinite; the message names the last checkpoint, which is of before.
        TrainingCollapsed: the embeddings became one point; as before.
        GraphaugError: whatever ``graphaug.rewrite`` raises about the sites.

    """
    done = run_task(
        ImageTask(config, data), out, force=force, resume=resume, on_line=on_epoch, on_step=on_step
    )
    return PretrainResult(done.model, done.metrics, done.result)


class ImageTask(Task[nn.Module]):
    """Pretraining, probed at its end; ``data``: already loaded, by default what ``config.data`` names."""

    restart = "init= (--init) begins another run with its weights"

    def __init__(self, config: PretrainConfig, data: ImageData | None = None) -> None:
        self.config: PretrainConfig = config
        self.given = data

    @property
    def data(self) -> ImageData:
        """The images, once they are read."""
        assert self.given is not None
        return self.given

    def check(self, out: Path | None, resume: bool) -> None:
        """Refuse settings that do nothing, and to begin with what the run itself would remove."""
        _check_sites(self.config)
        if METHODS[self.config.method].lightly:
            need_lightly(f"method={self.config.method!r}")
        _check_init(self.config, out, resume)

    def read(self) -> None:
        """Load the images, and refuse fewer than a batch."""
        config = self.config
        found = self.given or load(config.data, size=config.size, strict=config.strict)
        self.given = held_out(fewer(found, config.images), config.validation)
        _check_batch(config, self.data)
        if METHODS[config.method].labels and len(self.data.classes) < 2:
            raise DataError(
                f"method={config.method!r} is trained on labels, and the images of {self.data.name} have none: they "
                "are of one class."
            )

    def settings(self) -> dict[str, Any]:
        """The settings with the size of the views that the data decided."""
        return {**self.config.to_dict(), "size": self.config.size or self.data.view_size}

    def facts(self) -> dict[str, Any]:
        """Counts and hashes of images and labels, and of the code of a model of one's own."""
        return {**fingerprint(self.data), **code_of(self.config.model)}

    def finished(self, path: Path) -> nn.Module:
        """The model with the weights of a finished run."""
        with torch.random.fork_rng(devices=[]):
            model = self.build()
        load_weights(model, path)
        return model

    def unused(self) -> bool:
        """Whether all rows of a process's part of a batch are stopped, or parameters are frozen on the way."""
        config = self.config
        if config.freeze_schedule:
            return True
        rows = config.rows_at_once()
        subset = max(config.subset, config.subset_end or 0.0)
        return config.skips_rows and round(subset * rows) >= rows

    def build(self) -> nn.Module:
        """The model, whole, with its own classifier."""
        return build_model(self.config.model)

    def training(self, fabric: Fabric, model: nn.Module, fresh: bool) -> AbstractContextManager[Training]:
        """See `image_training`."""
        return image_training(fabric, model, self.config, self.data, fresh)

    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that a result depends on."""
        return versions("lightly") if METHODS[self.config.method].lightly else versions()

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Take trained weights."""
        model.load_state_dict(weights)

    def evaluate(
        self, model: nn.Module, metrics: list[dict[str, Any]], outcome: dict[str, Any], device: torch.device
    ) -> dict[str, Any]:
        """Probe the encoder; of images without labels there is nothing to probe, and their counts are given."""
        data = self.data
        model.to(device)
        if len(data.classes) < 2:
            counts = {"train_images": len(data.train), "test_images": len(data.test)}
            return {**counts, "classes": len(data.classes)}
        return probe(model, data, self.config.size)


def _check_sites(config: PretrainConfig) -> None:
    """Refuse what does nothing without a site: who asks for it has forgotten the site."""
    if not config.freeze_schedule and config.freeze_until != PretrainConfig.freeze_until:
        raise ConfigError(
            "freeze_until without freeze_schedule: there is nothing to freeze. Name the modules, or leave it out."
        )
    if config.at or config.everywhere:
        return
    names = ("stop_grad", "freeze", "transform", "rate_end", "subset_end", "augment_teacher")
    idle = [name for name in names if getattr(config, name) != getattr(PretrainConfig, name)]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} without a site: there is no Deep Augmentation to change. Name a site with at= (--at), "
            f"or leave {'it' if len(idle) == 1 else 'them'} out."
        )


def _check_init(config: PretrainConfig, out: Path | None, resume: bool) -> None:
    """Refuse to begin with what the run itself would remove; one that goes on does not read it any more."""
    if config.init is None or out is None or resume:
        return
    if Path(config.init).resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"init={config.init!r} lies in the output directory {str(out)!r}, whose run would be replaced: choose "
            "another output directory."
        )


def _check_batch(config: PretrainConfig, data: ImageData) -> None:
    if config.batch_size > len(data.train):
        raise DataError(
            f"batch_size={config.batch_size} is larger than the {len(data.train)} training images of {data.name}: give "
            f"at most {len(data.train)}, or more images."
        )
    parts = world_size(config.devices) * config.accumulate
    if config.batch_size % parts or config.batch_size // parts < 2:
        raise ConfigError(
            f"batch_size={config.batch_size} in {parts} parts ({world_size(config.devices)} process(es), "
            f"accumulate={config.accumulate}): each needs the same number of images, and at least 2. "
            f"Give a multiple of {parts}, at least {2 * parts}."
        )
