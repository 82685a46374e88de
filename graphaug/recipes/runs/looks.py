"""What else is asked of finished runs on images: a probe of every snapshot, and maps of similarity between layers.

**Maps.** CKA between the sites of an encoder, all pairs, over one batch of training images: by the estimator of
Kornblith et al. (2019), which is biased, and by the unbiased one, with a linear and with an RBF kernel of the median
bandwidth. Two activations that share nothing have an unbiased CKA of 0 in expectation; the biased one is the larger,
the more features there are to a sample. How much of a map is that is told by controls: *shuffled*, each pair with the
samples of the second site in another order, where nothing is shared but the bias; *noise*, pixels drawn uniformly, of
which nothing can be learned; *untrained*, the weights with which the run began.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.analysis.cka import CHOICES, cka
from graphaug.analysis.report.measure_images import balanced, encoder_sites
from graphaug.analysis.segments import stretches
from graphaug.contrastive.runs.files import write_json
from graphaug.errors import DataError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData
from graphaug.vision.models import build_model, features, to_rgb
from graphaug.vision.pretrain import ImageTask
from graphaug.vision.probes.evaluate import knn_accuracy, linear_probe
from graphaug.vision.views.pipeline import EvalView
from graphaug.vision.weights import load_weights

MAPS = "maps.json"
"""Beside a run's other files: ``sites``, and ``maps`` by what was looked at and by estimator and kernel."""

SAMPLES = 512
"""Training images that sites are compared on."""


def snapshots(config: PretrainConfig, out: Path) -> dict[str, float]:
    """Of every snapshot, by its epoch: ``linear`` and ``knn``, as at the run's end; accuracies in [0, 1].

    Raises:
        DataError: the run kept none.

    """
    files = sorted((out / "snapshots").glob("epoch-*.safetensors"))
    if not files:
        raise DataError(f"{str(out)!r} has no snapshots to probe.")
    data = _images(config)
    view = EvalView(config.size or data.view_size, *data.statistics())
    found: dict[str, float] = {}
    for file in files:
        model = _encoder(config, file)
        train, test = (features(model, part.images, view) for part in (data.train, data.test))
        sets = (train, data.train.labels, test, data.test.labels)
        epoch = int(file.stem.removeprefix("epoch-"))
        found |= {f"{epoch}.linear": linear_probe(*sets), f"{epoch}.knn": knn_accuracy(*sets)}
    return found


def layers(config: PretrainConfig, out: Path) -> dict[str, float]:
    """Maps of similarity between the encoder's layers, written to `MAPS`, and of each two numbers.

    Returns:
        By what was looked at, estimator and kernel: ``unlike``, 1 less the mean CKA of different sites, and
        ``in_stretches``, the share of sites that lie in a stretch (`graphaug.analysis.stretches`); both in [0, 1].

    """
    data = _images(config)
    images = data.train.images[balanced(data.train.labels, SAMPLES)]
    view = EvalView(config.size or data.view_size, *data.statistics())
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=drawn)
    x, noise = to_rgb(view(images)), to_rgb(view(pixels))
    order = torch.randperm(len(x), generator=drawn)
    model, untrained = _encoder(config, out), _untrained(config)
    sites = encoder_sites(model, x)
    looked = {
        "images": (model, x),
        "shuffled": (model, x),
        "noise": (model, noise),
        "untrained": (untrained, x),
    }
    maps: dict[str, dict[str, Any]] = {name: {} for name in looked}
    found: dict[str, float] = {}
    for (name, (network, inputs)), (estimator, kernel) in itertools.product(
        looked.items(), itertools.product(CHOICES["estimator"], CHOICES["kernel"])
    ):
        other, others = (None, None)
        if name == "shuffled":
            other, others = nn.Sequential(Reordered(order), network), [f"1.{site}" for site in sites]
        values = cka(
            network,
            inputs,
            sites,
            other,
            other_sites=others,
            estimator=estimator,
            kernel=kernel,
            batch_size=len(inputs),
        ).values
        maps[name][f"{estimator}, {kernel}"] = values.tolist()
        found[f"{name}.{estimator}.{kernel}.unlike"] = 1 - _mean_of_others(values)
        if name != "shuffled":
            inside = sum(stretch.length for stretch in stretches(values))
            found[f"{name}.{estimator}.{kernel}.in_stretches"] = inside / len(sites)
    write_json(out / MAPS, {"sites": sites, "samples": len(x), "maps": maps})
    return found


class Reordered(nn.Module):
    """The samples of a batch in another order."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """``(N, …)`` for N of the order."""
        return x[self.order]


def _mean_of_others(values: Tensor) -> float:
    """The mean of a map without its diagonal."""
    count = len(values)
    return float((values.sum() - values.diagonal().sum()) / (count * (count - 1)))


def _images(config: PretrainConfig) -> ImageData:
    """What the run was trained and probed on."""
    task = ImageTask(config)
    task.read()
    return task.data


def _encoder(config: PretrainConfig, weights: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model)
    load_weights(model, weights)
    return model.eval()


def _untrained(config: PretrainConfig) -> nn.Module:
    """Weights drawn as a run draws them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config.model).eval()
