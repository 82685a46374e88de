"""What the report shows of one run, computed from its weights and its data."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import graphaug
from graphaug.analysis.advise import Advice, advice_of, advise, candidates
from graphaug.analysis.cka import cka
from graphaug.analysis.dissection import Dissection, dissect
from graphaug.analysis.geometry import Geometry, geometry
from graphaug.analysis.report.read import ImageRun, Run, TextRun
from graphaug.capture.signature import map_tensors
from graphaug.capture.target import Target
from graphaug.errors import DataError, GraphaugError
from graphaug.sites import structure_of
from graphaug.surgery.module import AugmentedModule
from graphaug.vision.data.images import ImageData, load
from graphaug.vision.models import classifier_path, classifier_replaced, features, projection_head, to_rgb
from graphaug.vision.objective import image_views
from graphaug.vision.probes.evaluate import knn_accuracy
from graphaug.vision.views import UNIFORMS, EvalView

SEED = 0  # of the samples looked at and of their views: the same for every run


@dataclass(frozen=True)
class Words:
    """How the report speaks of a kind of run.

    Attributes:
        time: unit of a moment.
        samples: what was looked at.
        score: of a moment, as the axis of its curve and as the head of its column.
        scored, plane: captions of the curves, and of the plane.
        digits, unit: that a score is shown with, times 100.
    """

    time: str
    samples: str
    score: tuple[str, str]
    scored: str
    plane: str
    digits: int
    unit: str

    def shown(self, score: float | None) -> str:
        """A score as the tables have it."""
        return "–" if score is None else f"{100 * score:.{self.digits}f}{self.unit}"


IMAGES = Words(
    "epoch",
    "test images",
    ("kNN accuracy (%)", "kNN"),
    "nearest-neighbour accuracy (of the analysed test images, from 2,000 training images at most)",
    "features of two views of each test image",
    1,
    " %",
)


@dataclass(frozen=True)
class Moment:
    """An encoder at one time; what was not measured then is None.

    Attributes:
        time: epochs, or steps, that it was trained for.
        alignment, uniformity, std, rank: of the features of two views, and of one, as in `Geometry`; of sentences, of
            STS-B's positive pairs, and of all sentences.
        dimensions: of the features.
        score: accuracy of nearest neighbours in [0, 1], or Spearman's correlation on STS-B in [-1, 1]; None without
            labels.
        tolerance: None without labels, or where no class is there twice.
        sites: geometry at every compared site.
    """

    time: int
    alignment: float
    uniformity: float
    std: float | None = None
    rank: float | None = None
    dimensions: int | None = None
    score: float | None = None
    tolerance: float | None = None
    sites: tuple[Geometry, ...] = ()

    @classmethod
    def of(cls, time: int, own: Geometry, score: float | None, sites: tuple[Geometry, ...]) -> Moment:
        """Of the geometry of the features, and of that of every site."""
        return cls(
            time,
            own.alignment,
            own.uniformity,
            own.std,
            own.rank,
            own.dimensions,
            score,
            own.tolerance,
            sites,
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation times √D, 1 on the sphere."""
        return None if self.std is None or self.dimensions is None else self.std * math.sqrt(self.dimensions)


@dataclass(frozen=True)
class Layers:
    """What the report shows of a run's layers.

    Attributes:
        augmented: sites that were augmented in training, by name; those in the head too.
        cuts: such of them as are compared, as the CKA matrix names them.
        advice: with the CKA matrix and its stretches.
        dissection: of the run's own augmentation on a batch; None for a run without one.
        undissected: why a run with an augmentation has no dissection.
    """

    augmented: tuple[str, ...]
    cuts: tuple[str, ...]
    advice: Advice
    dissection: Dissection | None
    undissected: str


@dataclass(frozen=True)
class Study(Layers):
    """Everything the report shows of a run.

    Attributes:
        run: the run.
        words: of its kind.
        spectrum: singular values of the centred features, the largest first, as shares of their sum.
        moments: at every snapshot and at the end.
        scores: what the run itself says of its end, in the units of a moment's score, by name.
        samples: how many samples were looked at.
    """

    run: Run
    words: Words
    spectrum: Tensor
    moments: list[Moment]
    scores: dict[str, float | None]
    samples: int

    @property
    def sites(self) -> tuple[Geometry, ...]:
        """Geometry at every compared site at the end of training."""
        return self.moments[-1].sites


def study(
    run: Run, *, data: ImageData | None = None, sts: str | os.PathLike[str] | None = None, samples: int = 512
) -> Study:
    """Analyse a run on its own test images, or one on text on STS-B's development set.

    Args:
        run: as `read_run` gives it.
        data: of a run on images: the data, already loaded; by default what the run was trained on.
        sts: of a run on text: SentEval's directory or archive; by default the run's.
        samples: how many test images, or sentences for CKA, to look at, at most; images as many of every class.

    Raises:
        DataError: the data are gone, or too few.
        Whatever `cka` raises.
    """
    if isinstance(run, TextRun):
        from graphaug.analysis.report.measure_text import study_text  # needs what graphaug[text] brings

        return study_text(run, sts=sts, samples=samples)
    assert isinstance(run, ImageRun)
    return _study_images(run, data, samples)


def _study_images(run: ImageRun, data: ImageData | None, samples: int) -> Study:
    config = run.config
    data = data or load(config.data, size=config.size, strict=False)
    asked = balanced(data.test.labels, samples)
    images, labels = data.test.images[asked], data.test.labels[asked]
    if len(images) < 8:
        raise DataError(f"{data.name} has {len(images)} test images: an analysis needs 8 or more.")
    known = balanced(data.train.labels, 2000)
    train_images, train_labels = data.train.images[known], data.train.labels[known]
    probed = len(train_labels.unique()) > 1
    # one class is none; tolerance is over pairs of a class
    paired = labels if probed and int(labels.bincount().max()) > 1 else None
    size = config.size or data.view_size
    mean, std = data.statistics()
    plain = to_rgb(EvalView(size, mean, std)(images))
    views = image_views(data, config)
    draws = torch.rand(2 * len(images), UNIFORMS, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        first, second = to_rgb(views(images, draws)).chunk(2)
    pairs = list(zip(first.split(128), second.split(128), strict=True))
    model = run.model()
    end = len(run.metrics)
    earlier = {epoch: file for epoch, file in run.snapshots.items() if epoch != end}
    knn_view = EvalView(size, mean, std)
    top = features(model, images, knn_view)
    shares = spectrum(top, run)
    candidate = encoder_sites(model, plain)
    targets, why = _augmented(run, model, plain)
    inside = [t for t in targets if not _within(t.path, classifier_path(model))]
    if targets and not inside:
        why = "it acts in the projection head, of which a run keeps no weights."
    layers = compare_layers(run, model, plain, candidate, targets, inside, why)
    names = list(layers.advice.similarity.rows)

    def moment(epoch: int, encoder: nn.Module) -> Moment:
        x, y = (features(encoder, v, nn.Identity()) for v in (first, second))
        accuracy = None
        if probed:
            seen, new = (features(encoder, part, knn_view) for part in (train_images, images))
            accuracy = knn_accuracy(seen, train_labels, new, labels)
        own = Geometry.of("features", x, (x, y), paired)
        return Moment.of(epoch, own, accuracy, tuple(geometry(encoder, pairs, names, labels=paired)))

    return Study(
        **vars(layers),
        run=run,
        words=IMAGES,
        spectrum=shares,
        moments=[*(moment(epoch, run.model(file)) for epoch, file in earlier.items()), moment(end, model)],
        scores={
            "linear probe": run.result.get("linear"),
            "few labels": run.result.get("few_labels", {}).get("mean"),
            "kNN": run.result.get("knn"),
        },
        samples=len(images),
    )


def advise_run(run: ImageRun, *, samples: int = 512) -> tuple[Advice, ImageData]:
    """Advice for a run's encoder on its own test images, and the data."""
    data = load(run.config.data, size=run.config.size, strict=False)
    model, images = run.model(), data.test.images[balanced(data.test.labels, samples)]
    plain = to_rgb(EvalView(run.config.size or data.view_size, *data.statistics())(images))
    return advise(model, plain, encoder_sites(model, plain)), data


def spectrum(top: Tensor, run: Run) -> Tensor:
    """Singular values of a run's features, (samples, D), as shares of their sum; raises ``DataError`` if not finite."""
    if not bool(top.isfinite().all()):
        raise DataError(
            f"the features of the encoder in {str(run.path)!r} are not finite: the run has diverged."
        )
    values: Tensor = torch.linalg.svdvals(top.double() - top.double().mean(0))
    return values / values.sum().clamp(min=1e-30)


def compare_layers(
    run: Run,
    model: nn.Module,
    samples: Any,
    candidate: list[str],
    targets: list[Target],
    inside: list[Target],
    why: str,
) -> Layers:
    """CKA between the candidates and the cuts, the advice it gives, and the dissection.

    Args:
        run: whose settings the augmentation has.
        model: in which all is looked at.
        samples: a tensor or a dict of tensors.
        candidate: sites that the advice may name.
        targets: where the run augmented.
        inside: such of them as are in the model.
        why: there is no dissection, as far as known.
    """
    spelled = [_compared(t, candidate) for t in inside]
    try:
        similarity = cka(model, samples, [*candidate, *(s for s in spelled if s not in candidate)])
    except GraphaugError:  # the cut has no activations of every row in eval mode: compared is what can be
        similarity = cka(model, samples, candidate)
    # a module that is called twice is named with the call
    cuts = [n for s, t in zip(spelled, inside, strict=True) for n in {s, str(t)} if n in similarity.rows]
    dissection = None
    if inside:
        dissection, why = _dissected(run, model, inside, samples, similarity.rows)
    return Layers(
        tuple(map(_plain_name, targets)) or tuple(map(str, run.config.at)),
        tuple(cuts),
        advice_of(similarity, leave_out=[c for c in cuts if c not in candidate]),
        dissection,
        why,
    )


def balanced(labels: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` samples, as many of every class as it has, in an order in which any part is so too.

    Folders and CIFAR's archives come sorted by class, and what is looked at is also cut into batches.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    turn = torch.zeros(len(labels), dtype=torch.long)  # of every sample within its class
    for label in labels.unique():
        members = (labels[order] == label).nonzero()[:, 0]
        turn[members] = torch.arange(len(members))
    return order[turn.argsort(stable=True)[:count]]


def encoder_sites(model: nn.Module, images: Tensor) -> list[str]:
    """The sites to compare, without the classifier, which contrastive training does not train."""
    return [site for site in candidates(model, (images[:2],)) if site != classifier_path(model)]


def _augmented(run: ImageRun, model: nn.Module, images: Tensor) -> tuple[list[Target], str]:
    """The sites that the run augmented, in the network that it trained, or why they are not to be had."""
    head = projection_head(model.get_submodule(classifier_path(model)), run.config.projection)
    with classifier_replaced(model, head):
        return augmented_sites(run, model, images)


def augmented_sites(run: Run, network: nn.Module, samples: Any) -> tuple[list[Target], str]:
    """The sites that a run augmented in the network that it trained, or why they are not to be had."""
    at: list[str | int] = list(run.config.at)
    try:
        if run.config.everywhere:
            at = [number for number in structure_of(network, first_rows(samples, 2)).stages if number >= 0]
        if not at:
            return [], ""
        return list(_rewritten(run, network, at, samples).augmentations), ""
    except GraphaugError as error:
        return [], str(error)


def _rewritten(run: Run, model: nn.Module, at: list[Any], samples: Any) -> AugmentedModule:
    options = {**run.config.deep_augmentation(), "freeze": None}
    aug: AugmentedModule = graphaug.rewrite(
        model,
        at=at if len(at) > 1 else at[0],
        backward="dense",
        example_inputs=first_rows(samples, 2),
        **options,
    )
    return aug


def _dissected(
    run: Run, model: nn.Module, targets: list[Target], samples: Any, sites: Sequence[str]
) -> tuple[Dissection | None, str]:
    try:
        aug = _rewritten(run, model, list(map(str, targets)), samples)
        return dissect(aug, first_rows(samples, 128), list(sites)), ""
    except (
        GraphaugError
    ) as error:  # a subset that is 0 rows of the batch, a site that eval mode does not have
        return None, str(error)


def first_rows(samples: Any, count: int) -> Any:
    """Of a tensor, or of every tensor in a dict."""
    return map_tensors(lambda t: t[:count], samples)


def _compared(target: Target, sites: Sequence[str]) -> str:
    """An augmented site as the matrix names it: a container's output is that of its last entry."""
    name = _plain_name(target)
    entries = [s for s in sites if _within(s, name)]
    return name if name in sites or not entries else entries[-1]


def _plain_name(target: Target) -> str:
    return str(target).removesuffix("@0")


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + ".")
