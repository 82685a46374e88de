"""Training a classifier on an encoder, frozen or not: SupContrast's linear protocol, and fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.contrastive.devices import make_fabric, own_generators
from graphaug.contrastive.engine import Engine
from graphaug.errors import DataError
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.data.rows import image_rows
from graphaug.vision.models import classifier_replaced, feature_width, to_rgb
from graphaug.vision.views.pipeline import UNIFORMS, EvalView, SimCLRViews

OnEpoch = Callable[[dict[str, Any]], None]
"""Called behind each epoch with its line of the metrics and ``accuracy``, that on the test images in [0, 1]."""

DECAY_EPOCHS, DECAY = (0.60, 0.75, 0.90), 0.2
"""SupContrast's linear schedule: after these shares of the epochs (60, 75, 90 of 100) the rate is a fifth."""


@dataclass(frozen=True)
class Trained:
    """``accuracy``: on the test images after the last epoch, what is to be reported; ``best``: the highest of all."""

    accuracy: float
    best: float
    best_epoch: int
    epochs: int

    def to_dict(self) -> dict[str, float]:
        """Named so that nobody takes the best for the result."""
        return {
            "last_epoch": self.accuracy,
            "best_over_epochs": self.best,
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
        }


def linear_protocol(
    model: nn.Module,
    data: ImageData,
    *,
    size: int | None = None,
    epochs: int = 100,
    batch_size: int = 512,
    lr: float = 5.0,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """SupContrast's linear evaluation: a linear layer on the features before the head, the encoder in eval mode.

    Its training images are cropped (scale 0.2 to 1) and flipped; SGD with momentum 0.9 and no weight decay, lr 5 times
    0.2 after 60, 75 and 90 % of the epochs, batch 512, 100 epochs (``main_linear.py`` with the options of its README).

    Raises:
        DataError: fewer than two classes.

    """

    def rate(epoch: float) -> float:
        # Epochs are counted from 1, and the rate falls in the epoch after the one that is named.
        steps: int = sum(math.floor(epoch + 1e-9) + 1 > round(share * epochs) for share in DECAY_EPOCHS)
        return lr * DECAY**steps

    return _fit(model, data, size, epochs, batch_size, rate, seed, True, on_epoch)


def fine_tune(
    model: nn.Module,
    data: ImageData,
    *,
    size: int | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 0.05,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train encoder and a new linear layer on labelled images; ``model`` itself is changed.

    SGD with momentum 0.9 and weight decay 1e-4, half a cosine from ``lr`` to 0; crops and flips as `linear_protocol`.

    Raises:
        DataError: fewer than two classes.

    """

    def rate(epoch: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    return _fit(model, data, size, epochs, batch_size, rate, seed, False, on_epoch)


def _fit(
    model: nn.Module,
    data: ImageData,
    size: int | None,
    epochs: int,
    batch_size: int,
    rate: Any,
    seed: int,
    frozen: bool,
    on_epoch: OnEpoch | None,
) -> Trained:
    if len(data.classes) < 2:
        raise DataError(
            "a probe needs at least two classes: folders of images are expected to be named for them."
        )
    fabric = make_fabric(1, "auto", "32-true")
    device, size, statistics = fabric.device, size or data.view_size, data.statistics()
    generator = torch.Generator().manual_seed(seed)
    flip = 0.5 if data.mirror else 0.0
    mean, std = statistics
    views = SimCLRViews(
        size, n_views=1, scale=(0.2, 1.0), flip=flip, jitter_p=0, gray_p=0, mean=mean, std=std
    )
    width = feature_width(model)
    accuracies: list[float] = []
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    mode = model.training
    with classifier_replaced(model, nn.Identity()), torch.random.fork_rng(own_generators(device)):
        torch.manual_seed(seed)
        head = nn.Linear(width, len(data.classes))
        try:
            model.requires_grad_(not frozen)
            objective = Classification(model.to(device), head, views, frozen).to(device)
            trained = [p for p in objective.parameters() if p.requires_grad]
            decay = 0.0 if frozen else 1e-4
            optimizer = torch.optim.SGD(trained, rate(0.0), momentum=0.9, weight_decay=decay)
            feed = LabelledFeed(data.train, batch_size, generator, device)
            engine = Engine(fabric, objective, feed, optimizer, rate, epochs=epochs)
            view = EvalView(size, *statistics).to(device)

            def look(line: dict[str, Any]) -> None:
                accuracies.append(objective.accuracy(data.test, view))
                if on_epoch is not None:
                    on_epoch({**line, "accuracy": accuracies[-1]})

            engine.fit(after_line=look)
        finally:
            for name, p in model.named_parameters():
                p.requires_grad_(wanted[name])
            model.train(mode)
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    return Trained(accuracies[-1], accuracies[best], best + 1, epochs)


class Classification(nn.Module):
    """Cross-entropy of a linear layer on an encoder; a frozen encoder stays in eval mode and gets no gradient."""

    def __init__(self, encoder: nn.Module, head: nn.Linear, views: nn.Module, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.views, self.frozen = encoder, head, views, frozen

    def train(self, mode: bool = True) -> Classification:
        """Set the mode, of the encoder only where it is trained."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, uniforms: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss in nats of ``(B, C, H, W)`` images with ``(B,)`` labels."""
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            x = self.encoder(to_rgb(self.views(images, uniforms))).flatten(1).float()
        return {"loss": F.cross_entropy(self.head(x), labels)}

    @torch.no_grad()
    def accuracy(self, part: ImageSet, view: nn.Module) -> float:
        """Share of images classified correctly, in eval mode."""
        self.eval()
        device, correct = self.head.weight.device, 0
        for images, labels in zip(torch.split(part.images, 256), torch.split(part.labels, 256), strict=True):
            scores = self.head(self.encoder(to_rgb(view(images.to(device)))).flatten(1).float())
            correct += int((scores.argmax(1).cpu() == labels).sum())
        self.train()
        return correct / len(part)


class LabelledFeed:
    """Shuffled labelled batches with the draws of one view each.

    The last one of an epoch may be smaller. A single image that is left over goes into the batch before it: alone it
    would have no batch statistics.
    """

    def __init__(
        self, part: ImageSet, batch_size: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self.images, self.labels = image_rows(part.images, device), part.labels.to(device)
        self.batch_size, self.generator, self.device = batch_size, generator, device
        self.steps = max(1, math.ceil((len(part) - 1) / batch_size)) if batch_size > 1 else len(part)
        self.shuffled = torch.empty(0, dtype=torch.int64)

    def start_epoch(self) -> None:
        """Draw the order of an epoch."""
        order = torch.randperm(len(self.labels), generator=self.generator)
        self.shuffled = order.to(self.images.index_device)

    def batches(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, the draws of their views, labels."""
        chosen, ahead = self._rows(step), self._rows(step + 1)
        uniforms = torch.rand(len(chosen), UNIFORMS, generator=self.generator).to(self.device)
        images = self.images(chosen, ahead if len(ahead) else None)
        yield images, uniforms, self.labels[chosen.to(self.device)]

    def _rows(self, step: int) -> Tensor:
        end = None if step == self.steps - 1 else (step + 1) * self.batch_size
        return self.shuffled[step * self.batch_size : end] if step < self.steps else self.shuffled[:0]

    def state_dict(self, new_epoch: bool) -> dict[str, Any]:
        """The generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; runs this short are not resumed within an epoch."""
        self.generator.set_state(state["generator"])
