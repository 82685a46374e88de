"""The fast probe of an encoder: standardised frozen features, logistic regression, few labels, neighbours."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphaug.contrastive.data import ImageData
from graphaug.contrastive.evaluate import few_label_probe, knn_accuracy, linear_probe
from graphaug.contrastive.models import features
from graphaug.contrastive.views import EvalView


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
