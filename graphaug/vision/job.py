"""What each process of a run does: model, objective and engine put together, and what happens between steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphaug.capture.signature import evaluating
from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.devices import own_generators
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.gather import process_count
from graphaug.contrastive.optim import build_optimizer
from graphaug.contrastive.runs.checkpoints import Checkpoint, Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.schedule import augmentation_rate, augmentation_subset, learning_rate
from graphaug.contrastive.watch import Board, check_spread
from graphaug.errors import ConfigError, TrainingCollapsed, TrainingDiverged
from graphaug.vision.config import PretrainConfig, versions
from graphaug.vision.data.fingerprint import fingerprint
from graphaug.vision.data.images import ImageData
from graphaug.vision.models import build_model, classifier_path, classifier_replaced, projection_head
from graphaug.vision.objective import ImageFeed, ImageObjective, image_views
from graphaug.vision.probes.watch import Watch
from graphaug.vision.weights import load_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(
    fabric: Fabric,
    emit: Callable[[Any], None],
    config: PretrainConfig,
    data: ImageData,
    out: str | None,
    resume: bool,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train, and return the encoder's weights and the metrics.

    Raises:
        GraphaugError: what `pretrain` raises while it trains.

    """
    checkpoints = Checkpoints(Path(out) / "checkpoints", config.keep) if out is not None else None
    found = checkpoints.latest() if checkpoints is not None and resume else None
    with torch.random.fork_rng(own_generators(fabric.device)):
        torch.manual_seed(config.seed)
        model = build_model(config.model)
        if config.init is not None and found is None:
            load_weights(model, config.init)
        path = classifier_path(model)
        own = model.get_submodule(path)
        head = projection_head(own, config.projection)
        if config.sync_batchnorm:
            model = _with_sync_batchnorm(model, fabric.device)
        model.to(fabric.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        size = config.size or data.view_size
        with classifier_replaced(model, head.to(fabric.device)):
            check_size(model, size, config.model)
            with deep_augmented(model, config, lambda: example_images(model, size), config.model) as trained:
                engine = build_engine(fabric, trained, config, data)
                watch = Watch(model, data, config, path)
                # Whatever can refuse has had its say, in every process: only now may a former run be replaced.
                fabric.barrier()
                run = RunDirectory.at(out) if out is not None and fabric.is_global_zero else None
                with run.held() if run is not None else nullcontext():
                    if run is not None and (found is None or run.settings() is None):
                        run.start(resolved(config, data, trained))
                    fabric.barrier()
                    if fabric.global_rank:
                        # Each process draws its own dropout; with one there is nothing to tell apart.
                        torch.manual_seed(config.seed + fabric.global_rank * 1_000_003)
                    hooks = _Hooks(engine, model, path, own, run, checkpoints, watch, config, emit)
                    hooks.begin(found)
                    try:
                        metrics = engine.fit(hooks.after_step, hooks.after_line)
                    except (TrainingDiverged, TrainingCollapsed) as error:
                        error.args = (f"{error}{_way_on(checkpoints)}",)
                        raise
                    hooks.close()
                    return hooks.encoder(), metrics


def build_engine(fabric: Fabric, trained: nn.Module, config: PretrainConfig, data: ImageData) -> Engine:
    """The engine of a run, for a network with its head, rewritten or not."""

    def schedule(epoch: float) -> None:
        if config.rate_end is not None:
            trained.set_rate(augmentation_rate(config, epoch))  # type: ignore[operator]
        if config.subset_end is not None:
            trained.set_subset(augmentation_subset(config, epoch))  # type: ignore[operator]

    objective = ImageObjective(trained, image_views(data, config), config).to(fabric.device)
    scheduled = hasattr(trained, "set_rate") and (config.rate_end, config.subset_end) != (None, None)
    optimizer = build_optimizer(
        config.optimizer, trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    return Engine(
        fabric,
        objective,
        ImageFeed(data, config, fabric.device),
        optimizer,
        lambda epoch: learning_rate(config, epoch),
        epochs=config.epochs,
        accumulate=config.accumulate,
        compile=config.compile,
        cuda_graphs=config.cuda_graphs,
        before_step=schedule if scheduled else None,
    )


class _Hooks:
    """What a run does between steps: checkpoints, metrics, snapshots. One writes; all take part in the collectives."""

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        path: str,
        own: nn.Module,
        run: RunDirectory | None,
        checkpoints: Checkpoints | None,
        watch: Watch,
        config: PretrainConfig,
        emit: Callable[[Any], None],
    ) -> None:
        self.engine, self.model, self.path, self.own = engine, model, path, own
        self.run, self.checkpoints, self.watch, self.config, self.emit = run, checkpoints, watch, config, emit
        steps = engine.feed.steps
        self.last = config.epochs * steps
        self.period = max(1, round(config.checkpoint_every * steps))
        self.board: Board | None = None

    def begin(self, found: Checkpoint | None) -> None:
        """Go to the checkpoint, if there is one."""
        if found is not None:
            self.engine.load_state_dict(found.state)
            self.own.load_state_dict(found.state["classifier"])
        done = len(self.engine.position.metrics)
        if self.run is not None:
            self.run.tidy()
            self.run.metrics = list(self.engine.position.metrics)
            self.board = Board(self.run.path / "tensorboard", done + 1)
            if self.config.snapshot_every and found is None:
                self._snapshot(0)
        self.engine.fabric.barrier()

    def after_step(self, step: int) -> None:
        """Keep a checkpoint when one is due, and at the very end, for a kill during the probes."""
        if self.checkpoints is None or not self.config.checkpoint_every:
            return
        if step % self.period == 0 or step == self.last:
            self._check_spread(step)
            state = {**self.engine.state_dict(), "classifier": self.own.state_dict()}
            if self.run is not None:
                self.checkpoints.save(step, state)

    def _check_spread(self, step: int) -> None:
        """Refuse to keep a state whose embeddings have collapsed in the epoch that it is in the middle of."""
        steps = self.engine.feed.steps
        if step / steps > self.config.warmup and self.engine.position.sums:
            line = {**self.engine.means(), "epoch": step // steps + 1}
            check_spread(line, self.config.collapse)

    def after_line(self, line: dict[str, Any]) -> None:
        """Look at the epoch, and write it down."""
        first = self.engine.fabric.is_global_zero
        self.watch(line, look=first)
        if self.run is not None:
            self.run.epoch(line)
            if self.config.snapshot_every and line["epoch"] % self.config.snapshot_every == 0:
                self._snapshot(line["epoch"])
        if self.board is not None:
            self.board(line)
        if first:
            self.emit(line)
        self.engine.fabric.barrier()

    def close(self) -> None:
        """End what is open."""
        if self.board is not None:
            self.board.close()

    def encoder(self) -> dict[str, Tensor]:
        """The model's weights with its own classifier instead of the head."""
        state = {n: t for n, t in self.model.state_dict().items() if not n.startswith(self.path + ".")}
        state |= {f"{self.path}.{name}": tensor for name, tensor in self.own.state_dict().items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def _snapshot(self, epoch: int) -> None:
        assert self.run is not None
        # One entry only: safetensors writes several in an order of their own in every process.
        self.run.snapshot(epoch, self.encoder(), {"model": self.config.model})


def _way_on(checkpoints: Checkpoints | None) -> str:
    """The end of a message about a run that makes no sense any more."""
    if checkpoints is None:
        return ""
    kept = checkpoints.complete()
    if not kept:
        return " There is no checkpoint."
    return f" The last checkpoint is {str(kept[-1])!r}: init= (--init) begins another run with its weights."


def example_images(model: nn.Module, size: int) -> Tensor:
    """Four different images of one colour each."""
    device = next(model.parameters()).device
    example = torch.zeros(4, 3, size, size, device=device)
    return example + torch.arange(4, device=device).view(-1, 1, 1, 1) / 4


def check_size(model: nn.Module, size: int, name: str) -> None:
    """Raise ``ConfigError`` if a model cannot take images of ``size`` × ``size`` pixels; it is left as it was."""
    images = example_images(model, size)
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(own_generators(images.device)):
            model(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each architecture has errors of its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{name} cannot take images of {size} × {size} pixels: {said}. "
            "Give the model's own size (size=, --size), or another model."
        ) from error


def _with_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise ConfigError("sync_batchnorm needs GPUs: torch has no SyncBatchNorm for the CPU.")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def sized(config: PretrainConfig, data: ImageData) -> dict[str, Any]:
    """The settings with the size of the views that the data decided."""
    return {**config.to_dict(), "size": config.size or data.view_size}


def resolved(config: PretrainConfig, data: ImageData, model: nn.Module) -> dict[str, Any]:
    """What ``config.yaml`` says: the settings, what they resolved to, and the versions."""
    return {
        **sized(config, data),
        "resolved": {
            **fingerprint(data),
            "skipped_images": len(data.skipped),
            "steps_per_epoch": len(data.train) // config.batch_size,
            "processes": process_count(),
            "plan": str(getattr(model, "plan", "no Deep Augmentation")),
        },
        "versions": versions(),
    }
