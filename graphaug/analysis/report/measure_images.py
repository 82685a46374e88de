"""What the report shows of a run on images, computed from its encoders and its own test images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphaug.analysis.advise import Advice, advise, candidates
from graphaug.analysis.geometry import Geometry, geometry
from graphaug.analysis.report.findings import IMAGES, Measurement, RunAnalysis
from graphaug.analysis.report.layers import SEED, augmented_sites, compare_layers, is_within, spectrum
from graphaug.analysis.report.read import ImageRun
from graphaug.capture.target import Target
from graphaug.errors import DataError
from graphaug.vision.data.images import ImageData, fewer, load
from graphaug.vision.models import classifier_path, classifier_replaced, features, to_rgb
from graphaug.vision.objective import image_views
from graphaug.vision.probes.evaluate import knn_accuracy
from graphaug.vision.views.pipeline import UNIFORMS, EvalView


def analyze_images(run: ImageRun, *, data: ImageData | None = None, samples: int = 512) -> RunAnalysis:
    """Analyse a run on images, as `graphaug.analysis.report.analyze.analyze_run` does.

    Raises:
        DataError: the data are gone, or hold too few test images.
        Whatever `cka` raises.
    """
    config = run.config
    data = data or load(config.data, size=config.size, strict=False)
    asked = balanced(data.test.labels, samples)
    images, labels = data.test.images[asked], data.test.labels[asked]
    if len(images) < 8:
        raise DataError(f"{data.name} has {len(images)} test images: an analysis needs 8 or more.")
    trained = fewer(data, config.images).train  # the neighbours are looked for among what the run had
    known = balanced(trained.labels, 2000)
    train_images, train_labels = trained.images[known], trained.labels[known]
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
    inside = [t for t in targets if not is_within(t.path, classifier_path(model))]
    if targets and not inside:
        why = "it acts in the projection head, of which a run keeps no weights."
    layers = compare_layers(run, model, plain, candidate, targets, inside, why)
    names = list(layers.advice.similarity.rows)

    def measured(epoch: int, encoder: nn.Module) -> Measurement:
        x, y = (features(encoder, v, nn.Identity()) for v in (first, second))
        accuracy = None
        if probed:
            seen, new = (features(encoder, part, knn_view) for part in (train_images, images))
            accuracy = knn_accuracy(seen, train_labels, new, labels)
        own = Geometry.of("features", x, (x, y), paired)
        return Measurement.of(epoch, own, accuracy, tuple(geometry(encoder, pairs, names, labels=paired)))

    return RunAnalysis(
        **vars(layers),
        run=run,
        words=IMAGES,
        spectrum=shares,
        measurements=[
            *(measured(epoch, run.model(file)) for epoch, file in earlier.items()),
            measured(end, model),
        ],
        scores={
            "linear probe": run.result.get("linear"),
            "few labels": run.result.get("few_labels", {}).get("mean"),
            "kNN": run.result.get("knn"),
        },
        samples=len(images),
    )


def advise_images(run: ImageRun, *, samples: int = 512) -> tuple[Advice, ImageData]:
    """Advice for a run's encoder on its own test images, and the data."""
    data = load(run.config.data, size=run.config.size, strict=False)
    model, images = run.model(), data.test.images[balanced(data.test.labels, samples)]
    plain = to_rgb(EvalView(run.config.size or data.view_size, *data.statistics())(images))
    return advise(model, plain, encoder_sites(model, plain)), data


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
    # any number of classes: only the places of its layers count
    head = run.config.head(model.get_submodule(classifier_path(model)), 2)
    with classifier_replaced(model, head):
        return augmented_sites(run, model, images)
