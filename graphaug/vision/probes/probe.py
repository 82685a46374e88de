"""Probes of an encoder, of one run or of several: fast on standardised features, SupContrast's, and transfer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.runs.directory import NOT_SETTINGS, RunDirectory
from graphaug.contrastive.runs.files import runs_beside
from graphaug.errors import CheckpointError, ConfigError, DataError, RunDirectoryError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData
from graphaug.vision.models import build_model, features
from graphaug.vision.probes.evaluate import few_label_probe, knn_accuracy, label_share_probe, linear_probe
from graphaug.vision.probes.supervised import OnEpoch, fine_tune, linear_protocol
from graphaug.vision.views.pipeline import EvalView
from graphaug.vision.weights import load_weights

SHARES = (0.01, 0.05, 0.10)
"""The shares of labels that `probe_run` looks at beside all of them."""


def probe(
    model: nn.Module, data: ImageData, size: int | None = None, labels_per_class: int = 5
) -> dict[str, Any]:
    """Probe a frozen encoder: all labels, few labels (10 draws of them), nearest neighbours. Accuracies in [0, 1].

    Where images were held out for it, ``validation`` has the first and the last of these on them.
    """
    view = EvalView(size or data.view_size, *data.statistics()).to(next(model.parameters()).device)
    train_x, test_x = (features(model, part.images, view) for part in (data.train, data.test))
    sets = (train_x, data.train.labels, test_x, data.test.labels)
    # A folder may have a class with fewer images than the few labels.
    few = few_label_probe(
        *sets, labels_per_class=min(labels_per_class, int(data.train.labels.bincount().min()))
    )
    found: dict[str, Any] = {}
    if data.validation is not None:
        held_out = (features(model, data.validation.images, view), data.validation.labels)
        found["validation"] = {
            "linear": linear_probe(*sets[:2], *held_out),
            "knn": knn_accuracy(*sets[:2], *held_out),
            "images": len(data.validation),
        }
    return {
        "linear": linear_probe(*sets),
        **found,
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


def load_run(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder of a finished run, whole and in eval mode, and the run's settings.

    Raises:
        RunDirectoryError: ``path`` is no run directory.
        CheckpointError: it has settings that are none, or the run is not finished.

    """
    if not path.exists():
        raise RunDirectoryError(f"there is no folder {str(path)!r}.{runs_beside(path)}")
    settings = RunDirectory.at(path).settings() if path.is_dir() else None
    if settings is None or "model" not in settings:
        raise RunDirectoryError(
            f"{str(path)!r} is no run directory: there is no config.yaml that names a model.{_on_text(settings)}"
        )
    try:
        PretrainConfig.from_dict({name: v for name, v in settings.items() if name not in NOT_SETTINGS})
    except ConfigError as error:
        file = str(path / "config.yaml")
        raise CheckpointError(f"{file!r} is no configuration of a run: {error}") from error
    model = build_model(settings["model"])
    load_weights(model, path)
    return model.eval(), settings


def _on_text(settings: Any) -> str:
    """The end of a message about settings that are of no run on images: a hint, if they are of one on text."""
    text = isinstance(settings, dict) and "from_config" in settings
    return " It is a run on text: 'graphaug sts' scores it." if text else ""


def _frozen(path: Path, data: ImageData) -> tuple[nn.Module, int, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A run's encoder, the size of its views, and features and labels of the training and the test images."""
    model, settings = load_run(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    size = settings.get("size") or data.view_size
    view = EvalView(size, *data.statistics()).to(next(model.parameters()).device)
    train_x, test_x = (features(model, part.images, view) for part in (data.train, data.test))
    return model, size, (train_x, data.train.labels, test_x, data.test.labels)


def probe_run(
    path: Path,
    data: ImageData,
    *,
    linear: bool = False,
    epochs: int = 100,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Probe the encoder of a run.

    Args:
        path: of the run directory.
        data: labelled images.
        linear: SupContrast's linear protocol too, ``epochs`` long.
        epochs: of that.
        on_epoch: called behind each of its epochs, as `OnEpoch` says.

    Returns:
        Accuracies in [0, 1] by name: ``linear`` with all labels, ``knn``, ``linear 1 %`` and so on (the mean over five
        draws of the labels); with ``linear``, ``linear protocol``, after the last epoch, and beside it ``linear
        protocol, best over epochs``, which is chosen on the test images and not to be reported alone.

    Raises:
        CheckpointError: what `load_run` raises.
        DataError: fewer than two classes.

    """
    labelled(data)
    model, size, sets = _frozen(path, data)
    found: dict[str, Any] = {"linear": linear_probe(*sets), "knn": knn_accuracy(*sets)}
    for share in SHARES:
        found[f"linear {share:.0%} of labels"] = label_share_probe(*sets, share=share).mean
    if linear:
        trained = linear_protocol(model, data, size=size, epochs=epochs, on_epoch=on_epoch)
        found["linear protocol"] = trained.accuracy
        found["linear protocol, best over epochs"] = trained.best
    return found


def transfer_run(
    path: Path, data: ImageData, *, epochs: int = 30, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """How well the encoder of a run serves other data: ``linear`` on frozen features, and ``fine-tuned``.

    ``on_epoch`` is called behind each epoch of the fine-tuning, as `OnEpoch` says.

    Raises:
        CheckpointError: what `load_run` raises.
        DataError: fewer than two classes.

    """
    labelled(data)
    model, size, sets = _frozen(path, data)
    found = {"linear": linear_probe(*sets)}
    tuned = fine_tune(model, data, size=size, epochs=epochs, on_epoch=on_epoch)
    return {**found, "fine-tuned": tuned.accuracy, "fine-tuned, best over epochs": tuned.best}


def labelled(data: ImageData) -> None:
    """Raise ``DataError`` unless there are two classes to tell apart."""
    if len(data.classes) < 2:
        raise DataError(
            f"{data.name} holds one class, {', '.join(data.classes)}: a probe needs labels, one folder for each class."
        )


def summary(results: Sequence[dict[str, float]]) -> str:
    """The accuracies in %, of several runs as mean ± standard deviation (n - 1) with n."""
    width = max(len(name) for name in results[0])
    lines = []
    for name in results[0]:
        values = [100 * result[name] for result in results]
        text = f"{statistics.mean(values):.1f} %"
        if len(values) > 1:
            text = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %  (n = {len(values)})"
        lines.append(f"{name:<{width}}  {text}")
    return "\n".join(lines)
