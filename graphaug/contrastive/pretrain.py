"""SimCLR pretraining with Deep Augmentation, and the probe: small on purpose, to be read and replaced."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphaug
from graphaug.contrastive.config import PretrainConfig, versions
from graphaug.contrastive.data import ImageData, load
from graphaug.contrastive.evaluate import few_label_probe, knn_accuracy, linear_probe
from graphaug.contrastive.losses import LOSSES
from graphaug.contrastive.models import (
    build_model,
    classifier_path,
    classifier_replaced,
    features,
    projection_head,
    to_rgb,
)
from graphaug.contrastive.run_dir import RunDirectory
from graphaug.contrastive.views import UNIFORMS, EvalView, SimCLRViews
from graphaug.errors import ConfigError, DataError, TrainingDiverged


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
    data: ImageData | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> PretrainResult:
    """Pretrain an encoder and probe it.

    All checks come first: nothing is written, and no step is made, before the data are read, the model is rewritten
    and the output directory is free. The caller's random state is left as it was.

    Args:
        config: the settings.
        out: directory for ``config.yaml``, ``metrics.jsonl``, ``encoder.safetensors``, ``result.json`` and
            ``curves.png``; None writes nothing.
        force: replace another run in ``out``.
        data: the data, already loaded; by default what ``config.data`` names.
        on_epoch: called with the metrics of each epoch.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        DataError: the data are missing, unreadable, or fewer than a batch.
        ConfigError: no such model.
        TrainingDiverged: the loss became NaN or infinite.
        GraphaugError: whatever ``graphaug.rewrite`` raises about the sites.

    """
    run = RunDirectory(out, force) if out is not None else None
    data = data or load(config.data, size=config.size, strict=config.strict)
    if config.batch_size > len(data.train):
        raise DataError(
            f"a batch of {config.batch_size} is larger than the {len(data.train)} training images of {data.name}."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build_model(config.model)
        head = projection_head(model.get_submodule(classifier_path(model)), config.projection)
        model.to(device)
        with classifier_replaced(model, head.to(device)), _deep_augmented(model, config) as trained:
            if run is not None:
                run.start(_resolved(config, data, trained))
            metrics = _train(trained, data, config, device, run, on_epoch)
    result = probe(model, data, config.size)
    if run is not None:
        run.encoder(model.state_dict(), {"model": config.model})
        run.figure(lambda path: _plot(metrics, path))
        run.result(result)
    return PretrainResult(model, metrics, result)


def probe(
    model: nn.Module, data: ImageData, size: int | None = None, labels_per_class: int = 5
) -> dict[str, Any]:
    """Probe a frozen encoder: all labels, few labels (10 draws of them), nearest neighbours. Accuracies in [0, 1]."""
    view = EvalView(size or data.view_size, *data.statistics()).to(next(model.parameters()).device)
    train_x, test_x = (features(model, part.images, view) for part in (data.train, data.test))
    sets = (train_x, data.train.labels, test_x, data.test.labels)
    # A folder may have a class with fewer images than the few labels.
    few = few_label_probe(
        *sets, labels_per_class=min(labels_per_class, int(data.train.labels.bincount().min()))
    )
    return {
        "linear": linear_probe(*sets),
        "few_labels": {
            "labels_per_class": few.labels_per_class,
            "mean": few.mean,
            "std": few.std,
            "accuracies": list(few.accuracies),
        },
        "knn": knn_accuracy(*sets),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "classes": len(data.classes),
        "features": train_x.shape[1],
    }


@contextmanager
def _deep_augmented(model: nn.Module, config: PretrainConfig) -> Iterator[nn.Module]:
    """The model rewritten at ``config.at``; what was frozen for it is trainable again afterwards."""
    if not config.at:
        yield model
        return
    at = config.at[0] if len(config.at) == 1 else list(config.at)
    aug = graphaug.rewrite(model, at=at, **config.deep_augmentation())
    try:
        if not any(p.requires_grad for p in aug.parameters()):
            raise ConfigError(f"freeze={config.freeze!r} at {at!r} leaves nothing to train.")
        yield aug
    finally:
        graphaug.strip(aug)


def _train(
    model: nn.Module,
    data: ImageData,
    config: PretrainConfig,
    device: torch.device,
    run: RunDirectory | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> list[dict[str, Any]]:
    mean, std = data.statistics()
    views: Callable[..., Tensor] = SimCLRViews(
        config.size or data.view_size,
        scale=(config.crop, 1.0),
        flip=0.5 if data.mirror else 0.0,
        mean=mean,
        std=std,
    ).to(device)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    loss_of = LOSSES[config.loss]
    embed: Callable[..., Tensor] = model
    if config.compile:
        embed, views = torch.compile(model, fullgraph=True), torch.compile(views, fullgraph=True)
    # Own generators: the order and the views do not depend on what the model draws, so that runs with and without
    # Deep Augmentation see the same.
    order = torch.Generator().manual_seed(config.seed)
    view_numbers = torch.Generator(device).manual_seed(config.seed)
    images = data.train.images.to(device)
    steps = len(images) // config.batch_size
    metrics: list[dict[str, Any]] = []
    model.train()
    for epoch in range(config.epochs):
        start, total = time.perf_counter(), torch.zeros((), device=device)
        shuffled = torch.randperm(len(images), generator=order).to(device)
        for step in range(steps):
            rate = learning_rate(config, epoch + step / steps)
            optimizer.param_groups[0]["lr"] = rate
            batch = images[shuffled[step * config.batch_size : (step + 1) * config.batch_size]]
            uniforms = torch.rand(2 * len(batch), UNIFORMS, generator=view_numbers, device=device)
            z1, z2 = embed(to_rgb(views(batch, uniforms))).flatten(1).float().chunk(2)
            loss = loss_of(z1, z2, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        mean_loss = total.item() / steps
        if not math.isfinite(mean_loss):
            raise TrainingDiverged(
                f"the loss is {mean_loss} in epoch {epoch + 1}; try a learning rate below {config.lr}."
            )
        seconds = time.perf_counter() - start
        line = {"epoch": epoch + 1, "loss": mean_loss, "lr": rate, "seconds": round(seconds, 3)}
        line["views_per_second"] = round(2 * steps * config.batch_size / seconds, 1)
        metrics.append(line)
        if run is not None:
            run.epoch(line)
        if on_epoch is not None:
            on_epoch(line)
    return metrics


def learning_rate(config: PretrainConfig, epoch: float) -> float:
    """The rate at a fractional ``epoch``: linear warm-up to ``config.lr``, then half a cosine down to 0."""
    warmup = min(config.warmup, config.epochs)
    if epoch < warmup:
        return config.lr * (0.01 + 0.99 * epoch / warmup)
    progress = (epoch - warmup) / max(config.epochs - warmup, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _resolved(config: PretrainConfig, data: ImageData, model: nn.Module) -> dict[str, Any]:
    """What ``config.yaml`` says: the settings, what they resolved to, and the versions."""
    return {
        **config.to_dict(),
        "size": config.size or data.view_size,
        "resolved": {
            "train_images": len(data.train),
            "test_images": len(data.test),
            "classes": len(data.classes),
            "skipped_images": len(data.skipped),
            "steps_per_epoch": len(data.train) // config.batch_size,
            "plan": str(getattr(model, "plan", "no Deep Augmentation")),
        },
        "versions": versions(),
    }


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
