"""What trains on images: model, head, augmentation, objective and engine put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphaug.callbacks.during import DuringTraining
from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.task import Training, configured_engine
from graphaug.contrastive.schedule import augmentation_rate, augmentation_subset
from graphaug.errors import ConfigError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData
from graphaug.vision.methods.table import METHODS
from graphaug.vision.models import classifier_path, classifier_replaced
from graphaug.vision.objective import ImageFeed, ImageObjective, image_views
from graphaug.vision.probes.watch import Watch
from graphaug.vision.trial import check_model, example_images
from graphaug.vision.weights import load_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def image_training(
    fabric: Fabric, model: nn.Module, config: PretrainConfig, data: ImageData, fresh: bool
) -> Iterator[ImageTraining]:
    """A whole model with the method's head and its augmentation, and all that trains it; the model's own afterwards.

    Raises:
        ConfigError: a model that cannot take the images' size, or returns something else than its head gives, or
            something that needs GPUs without any.
        CheckpointError: no weights to begin with at ``config.init``, or those of another model.
        GraphaugError: what ``graphaug.rewrite`` raises about the sites.

    """
    if config.cuda_graphs and (fabric.device.type != "cuda" or fabric.world_size > 1):
        raise ConfigError(
            f"cuda_graphs needs one GPU, not {fabric.world_size} process(es) on {fabric.device}."
        )
    if config.init is not None and fresh:
        load_weights(model, config.init, config.model)
    path = classifier_path(model)
    own = model.get_submodule(path)
    head = config.head(own, len(data.classes))
    if config.sync_batchnorm:
        model = _with_sync_batchnorm(model, fabric.device)
    model.to(fabric.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    size = config.size or data.view_size
    with classifier_replaced(model, head.to(fabric.device)):
        check_model(model, size, config.model, config.projection or len(data.classes))
        with deep_augmented(model, config, lambda: example_images(model, size), config.model) as trained:
            freezing = DuringTraining(freeze=config.freeze_schedule, freeze_until=config.freeze_until)
            freezing.check_freezing(trained)
            engine = build_engine(fabric, trained, config, data, freezing)
            counts = {"skipped_images": len(data.skipped), "steps_per_epoch": engine.feed.steps}
            plans = {"plan": str(getattr(trained, "plan", "no Deep Augmentation"))}
            watch = Watch(model, data, config, path)
            try:
                yield ImageTraining(engine, counts, plans, model, path, own, watch, freezing)
            finally:
                freezing.after_training()


def build_engine(
    fabric: Fabric,
    trained: nn.Module,
    config: PretrainConfig,
    data: ImageData,
    freezing: DuringTraining | None = None,
) -> Engine:
    """The engine of a run, for a network with its head, rewritten or not; ``freezing`` moves up as it trains."""
    feed = ImageFeed(data, config, fabric.device)
    objective = ImageObjective(trained, image_views(data, config), config).to(fabric.device)
    last = max(1, config.epochs * feed.steps - 1)

    def schedule(epoch: float) -> None:
        if freezing is not None:
            # of the step's number alone: a run that goes on freezes what it had frozen before its next step
            freezing.before_step(trained, round(epoch * feed.steps) / last)
        for augmented in (trained, *objective.method.augmented()):
            if config.rate_end is not None:
                augmented.set_rate(augmentation_rate(config, epoch))  # type: ignore[operator]
            if config.subset_end is not None:
                augmented.set_subset(augmentation_subset(config, epoch))  # type: ignore[operator]

    changes = (config.rate_end, config.subset_end) != (None, None)
    scheduled = (hasattr(trained, "set_rate") and changes) or bool(config.freeze_schedule)
    return configured_engine(
        fabric,
        objective,
        feed,
        config,
        accumulate=config.accumulate,
        cuda_graphs=config.cuda_graphs,
        before_step=schedule if scheduled else None,
        after_update=lambda epoch: objective.method.after_step(trained, epoch / config.epochs),
        views=METHODS[config.method].views,
    )


@dataclass
class ImageTraining(Training):
    """A training on images: ``model`` whole, with the head at ``path``, where its ``own`` classifier goes again."""

    engine: Engine
    counts: dict[str, int]
    plans: dict[str, str]
    model: nn.Module
    path: str
    own: nn.Module
    watch: Watch
    freezing: DuringTraining

    def weights(self) -> dict[str, Tensor]:
        """The model's weights with its own classifier instead of the head."""
        state = {n: t for n, t in self.model.state_dict().items() if not n.startswith(self.path + ".")}
        state |= {f"{self.path}.{name}": tensor for name, tensor in self.own.state_dict().items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def state(self) -> dict[str, Any]:
        """The classifier, which is not trained."""
        return {"classifier": self.own.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the classifier."""
        self.own.load_state_dict(state["classifier"])

    def look(self, line: dict[str, Any], run: RunDirectory | None) -> dict[str, Any]:
        """The accuracy of the nearest neighbours, where it is due, and how many parameters a schedule has frozen."""
        frozen = {"frozen": sum(p.numel() for p in self.freezing.frozen)} if self.freezing.freeze else {}
        return {**frozen, **self.watch(line["epoch"])}

    def snapshot(self, run: RunDirectory, at: int) -> None:
        """Write the encoder in the form of ``encoder.safetensors``."""
        # One entry only: safetensors writes several in an order of their own in every process.
        run.snapshot(at, self.weights(), {"model": self.watch.config.model})

    def write(self, run: RunDirectory) -> None:
        """Write ``encoder.safetensors``."""
        run.encoder(self.weights(), {"model": self.watch.config.model})


def _with_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise ConfigError("sync_batchnorm needs GPUs: torch has no SyncBatchNorm for the CPU.")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted
