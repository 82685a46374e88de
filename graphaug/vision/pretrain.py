"""SimCLR pretraining with Deep Augmentation: the pieces of a run put together, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphaug.contrastive.devices import is_first_process, launch, make_fabric, world_size
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.schedule import learning_rate
from graphaug.errors import ConfigError, DataError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.fingerprint import fingerprint
from graphaug.vision.data.images import ImageData, load
from graphaug.vision.job import sized, train
from graphaug.vision.models import build_model
from graphaug.vision.probes.probe import probe
from graphaug.vision.weights import load_weights

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
    _check_sites(config)
    first = is_first_process()
    run = RunDirectory(out, force, resume) if out is not None and first else None
    if resume and out is not None:  # before data are read, or downloaded
        RunDirectory.at(out).check_settings(PretrainConfig, config.to_dict())
    data = data or load(config.data, size=config.size, strict=config.strict)
    _check_batch(config, data)
    _check_init(config, out, resume)
    if resume and out is not None:
        done = RunDirectory.at(out).resumed(PretrainConfig, sized(config, data), fingerprint(data))
        if done is not None:
            model = _fresh(config.model)
            load_weights(model, out)
            return PretrainResult(model, done[1], done[0])
    fabric = make_fabric(config.devices, config.accelerator, config.precision, unused=_unused(config))
    if config.cuda_graphs and (fabric.device.type != "cuda" or fabric.world_size > 1):
        raise ConfigError(
            f"cuda_graphs needs one GPU, not {fabric.world_size} process(es) on {fabric.device}."
        )
    job = (config, data, None if out is None else str(out), resume)
    state, metrics = launch(fabric, train, *job, on_event=on_epoch)
    model = _fresh(config.model)
    model.load_state_dict(state)
    if not first:
        return PretrainResult(model, metrics, {})
    model.to(torch.device("cuda" if fabric.device.type == "cuda" else "cpu"))
    result = _result(model, data, config)
    if run is not None:
        run.encoder(model.state_dict(), {"model": config.model})
        run.figure(lambda path: _plot(metrics, path))
        run.result(result)
        Checkpoints(run.checkpoints).clear()
    return PretrainResult(model, metrics, result)


def _fresh(name: str) -> nn.Module:
    """Build a model and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[]):
        return build_model(name)


def _check_sites(config: PretrainConfig) -> None:
    """Refuse what does nothing without a site: who asks for it has forgotten the site."""
    if config.at or config.everywhere:
        return
    names = ("stop_grad", "freeze", "rate_end", "subset_end")
    idle = [name for name in names if getattr(config, name) != getattr(PretrainConfig, name)]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} without a site: there is no Deep Augmentation to change. Name a site with at= (--at), "
            f"or leave {'it' if len(idle) == 1 else 'them'} out."
        )


def _check_init(config: PretrainConfig, out: str | os.PathLike[str] | None, resume: bool) -> None:
    """Refuse to begin with what the run itself would remove; one that goes on does not read it any more."""
    if config.init is None or out is None or resume:
        return
    if Path(config.init).resolve().is_relative_to(Path(out).resolve()):
        raise ConfigError(
            f"init={config.init!r} lies in the output directory {str(out)!r}, whose run would be replaced: choose "
            "another output directory."
        )


def _check_batch(config: PretrainConfig, data: ImageData) -> None:
    if config.batch_size > len(data.train):
        raise DataError(
            f"a batch of {config.batch_size} is larger than the {len(data.train)} training images of {data.name}."
        )
    parts = world_size(config.devices) * config.accumulate
    if config.batch_size % parts or config.batch_size // parts < 2:
        raise ConfigError(
            f"batch_size={config.batch_size} in {parts} parts ({world_size(config.devices)} process(es), "
            f"accumulate={config.accumulate}): each needs the same number of images, and at least 2. "
            f"Give a multiple of {parts}, at least {2 * parts}."
        )


def _unused(config: PretrainConfig) -> bool:
    """Whether a step may leave parameters without a gradient: all rows of a process's part of a batch are stopped."""
    rows = 2 * (config.batch_size // (world_size(config.devices) * config.accumulate))
    subset = max(config.subset, config.subset_end or 0.0)
    return config.stop_grad and config.backward != "dense" and round(subset * rows) >= rows


def _result(model: nn.Module, data: ImageData, config: PretrainConfig) -> dict[str, Any]:
    if len(data.classes) < 2:  # images without labels: pretraining is fine, there is nothing to probe
        return {"train_images": len(data.train), "test_images": len(data.test), "classes": len(data.classes)}
    return probe(model, data, config.size)


def _plot(metrics: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    epochs = [line["epoch"] for line in metrics]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats)")
    axes.plot(epochs, [line["loss"] for line in metrics], marker="." if len(metrics) < 50 else "")
    rates = axes.twinx()
    rates.plot(epochs, [line["lr"] for line in metrics], color="0.6", linestyle="--")
    rates.set_ylabel("learning rate (dashed)")
    figure.savefig(path, dpi=120)
