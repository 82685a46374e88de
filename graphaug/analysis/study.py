"""What the report shows of one run, computed from its weights and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import graphaug
from graphaug.analysis.advise import Advice, advise, candidates
from graphaug.analysis.dissect import Dissection, dissect
from graphaug.analysis.geometry import Geometry, alignment, geometry, uniformity
from graphaug.analysis.runs import Run
from graphaug.contrastive.data import ImageData, load
from graphaug.contrastive.evaluate import knn_accuracy
from graphaug.contrastive.models import classifier_path, features, to_rgb
from graphaug.contrastive.objective import image_views
from graphaug.contrastive.views import UNIFORMS, EvalView
from graphaug.errors import BatchError, DataError

SEED = 0  # of the views that alignment is measured on: the same for every run


@dataclass(frozen=True)
class Moment:
    """An encoder at one time: the epoch, alignment and uniformity of its features, and kNN accuracy in [0, 1]."""

    epoch: int
    alignment: float
    uniformity: float
    knn: float


@dataclass(frozen=True)
class Study:
    """Everything the report shows of a run.

    Attributes:
        run: the run.
        cuts: sites that were augmented in training, as the CKA matrix names them.
        advice: with the CKA matrix and its stretches.
        sites: geometry at every candidate site.
        spectrum: singular values of the centred features, the largest first, as shares of their sum.
        moments: at every snapshot and at the end.
        dissection: of the run's own augmentation on a test batch; None for a run without one.
        samples: test images looked at.
    """

    run: Run
    cuts: tuple[str, ...]
    advice: Advice
    sites: list[Geometry]
    spectrum: Tensor
    moments: list[Moment]
    dissection: Dissection | None
    samples: int


def study(run: Run, *, data: ImageData | None = None, samples: int = 512) -> Study:
    """Analyse a run on its own test images.

    Args:
        run: as `read_run` gives it.
        data: the data, already loaded; by default what the run was trained on.
        samples: how many test images to look at, at most.

    Raises:
        DataError: the data are gone, or too few.
        Whatever `advise` and `dissect` raise.
    """
    config = run.config
    data = data or load(config.data, size=config.size, strict=False)
    images, labels = data.test.images[:samples], data.test.labels[:samples]
    if len(images) < 8:
        raise DataError(f"{data.name} has {len(images)} test images: an analysis needs 8 or more.")
    size = config.size or data.view_size
    mean, std = data.statistics()
    plain = to_rgb(EvalView(size, mean, std)(images))
    views = image_views(data, config)
    draws = torch.rand(2 * len(images), UNIFORMS, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        first, second = to_rgb(views(images, draws)).chunk(2)
    model = run.model()
    sites = encoder_sites(model, plain)
    end = len(run.metrics)
    earlier = {epoch: file for epoch, file in run.snapshots.items() if epoch != end}
    train = data.train.images[:2000], data.train.labels[:2000]
    knn_view = EvalView(size, mean, std)

    def moment(epoch: int, encoder: nn.Module) -> Moment:
        x, y = (features(encoder, v, nn.Identity()) for v in (first, second))
        known, asked = (features(encoder, part, knn_view) for part in (train[0], images))
        accuracy = knn_accuracy(known, train[1], asked, labels)
        return Moment(epoch, alignment(x, y), uniformity(torch.cat([x, y])), accuracy)

    top = features(model, images, knn_view)
    values = torch.linalg.svdvals(top.double() - top.double().mean(0))
    return Study(
        run=run,
        cuts=_cuts(run, model, plain, sites),
        advice=advise(model, plain, sites),
        sites=geometry(model, zip(first.split(128), second.split(128), strict=True), sites, labels=labels),
        spectrum=values / values.sum().clamp(min=1e-30),
        moments=[*(moment(epoch, run.model(file)) for epoch, file in earlier.items()), moment(end, model)],
        dissection=_dissected(run, model, plain, sites),
        samples=len(images),
    )


def advise_run(run: Run, *, samples: int = 512) -> tuple[Advice, ImageData]:
    """Advice for a run's encoder on its own test images, and the data."""
    data = load(run.config.data, size=run.config.size, strict=False)
    model, images = run.model(), data.test.images[:samples]
    plain = to_rgb(EvalView(run.config.size or data.view_size, *data.statistics())(images))
    return advise(model, plain, encoder_sites(model, plain)), data


def encoder_sites(model: nn.Module, images: Tensor) -> list[str]:
    """The sites to compare, without the classifier, which contrastive training does not train."""
    return [site for site in candidates(model, (images[:2],)) if site != classifier_path(model)]


def _rewritten(run: Run, model: nn.Module, images: Tensor) -> Any:
    at = list(run.config.at)
    return graphaug.rewrite(
        model,
        at=at if len(at) > 1 else at[0],
        backward="dense",
        example_inputs=images[:2],
        **{**run.config.deep_augmentation(), "freeze": None},
    )


def _cuts(run: Run, model: nn.Module, images: Tensor, sites: list[str]) -> tuple[str, ...]:
    """The augmented sites as the matrix names them: a container's output is that of its last entry."""
    if not run.config.at:
        return ()
    names = [str(t).removesuffix("@0") for t in _rewritten(run, model, images).augmentations]
    entries = {name: [s for s in sites if s.startswith(name + ".")] for name in names}
    return tuple(name if name in sites or not entries[name] else entries[name][-1] for name in names)


def _dissected(run: Run, model: nn.Module, images: Tensor, sites: list[str]) -> Dissection | None:
    if not run.config.at:
        return None
    try:
        return dissect(_rewritten(run, model, images), images[:128], sites)
    except BatchError:  # a subset that is 0 rows of the batch
        return None
