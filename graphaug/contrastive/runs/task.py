"""What a modality brings to a run: data, model, objective, evaluation. The rest is `graphaug.contrastive.runs.life`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from graphaug.contrastive.config.settings import Settings, package_versions
from graphaug.contrastive.engine import Engine, Feed
from graphaug.contrastive.optim import build_optimizer
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.schedule import learning_rate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Model = TypeVar("Model")


class Keeping(Protocol):
    """Two more settings that a run has, in its task's unit; 0 keeps none."""

    @property
    def checkpoint_every(self) -> float:
        """Epochs or steps between checkpoints."""

    @property
    def snapshot_every(self) -> int:
        """Epochs or steps between snapshots of the encoder, the untrained one among them."""


class Curve(NamedTuple):
    """A measure that ``curves.png`` shows beside the loss: its name in the metrics, its axis, and its scale."""

    name: str
    label: str
    scale: float = 1.0


class Training(ABC):
    """One process's share of a run, ready for its first step.

    ``engine`` makes the steps. ``counts`` says how much there is to train on, and ``plans`` what the augmentation is:
    both go into ``resolved`` of ``config.yaml``, and the counts to ``on_start``, too. If the objective's measures have
    a ``spread`` (`graphaug.contrastive.geometry.embedding_spread`), a collapse of the embeddings ends the run.
    """

    engine: Engine
    counts: dict[str, int]
    plans: dict[str, str]

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The weights that the run is for, on the CPU: what `Task.load` takes."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the engine's state; names must be other ones."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027  # nothing beside the engine's is usual
        """Take what `state` gave out of a checkpoint."""

    def settle(self, run: RunDirectory) -> None:  # noqa: B027  # nothing but the run's own files is usual
        """Bring what a run's directory holds to the state that was loaded: a kill may have left later files."""

    def look(self, line: dict[str, Any], run: RunDirectory | None) -> dict[str, Any]:
        """What an evaluation adds to a line of the metrics; called in one process, which has the run's directory."""
        return {}

    @abstractmethod
    def snapshot(self, run: RunDirectory, at: int) -> None:
        """Keep the encoder as it is after ``at`` epochs or steps; called in one process."""

    @abstractmethod
    def write(self, run: RunDirectory) -> None:
        """Write the trained model; called in one process, after the last step."""

    def outcome(self) -> dict[str, Any]:
        """Plain values that `Task.evaluate` needs from the training."""
        return {}


class Task(ABC, Generic[Model]):
    """A kind of run, with its settings and its data.

    A third modality is a class of this and one of `Training`, of which each method is the modality's own matter::

        class GraphTask(Task[GraphEncoder]):
            def __init__(self, config, data=None): ...
            def read(self): self.data = self.data or read_graphs(self.config.data)
            def facts(self): return {"graphs": len(self.data), "graphs_sha256": ...}
            def build(self): return GraphEncoder(self.config.width)
            def load(self, model, weights): model.load_state_dict(weights)
            def versions(self): return package_versions("torch", "torch-geometric")

            @contextmanager
            def training(self, fabric, model, fresh):
                with deep_augmented(model, self.config, example, "gin") as network:
                    feed = GraphFeed(self.data, self.config, fabric.device)
                    yield GraphTraining(configured_engine(fabric, GraphObjective(network), feed, self.config), model)

            def evaluate(self, model, metrics, outcome, device): return {"linear": probe(model, self.data)}
            def finished(self, path): return read_encoder(path / "encoder.safetensors")

        class GraphTraining(Training):
            def weights(self): return {name: t.cpu() for name, t in self.model.state_dict().items()}
            def snapshot(self, run, at): run.snapshot(at, self.weights(), {"model": "gin"})
            def write(self, run): run.encoder(self.weights(), {"model": "gin"})

        graphs = run_task(GraphTask(config), out, resume=True)

    `graphaug.contrastive.runs.life.run_task` begins, locks, resumes, compares settings, keeps checkpoints and
    snapshots, writes metrics, ends what diverges or collapses, and writes down what the evaluation gave. It calls the
    methods in the order in which they stand here. A task is pickled where processes are started.

    ``config`` has the settings of `Keeping`, too. ``unit``: what these count, and what a line of the metrics is named
    by. ``restart``: how another run can begin with the weights of a checkpoint, for the message about a run that makes
    no sense any more; empty where it cannot, and then the message names no checkpoint.
    """

    unit: ClassVar[Literal["epoch", "step"]] = "epoch"
    curve: ClassVar[Curve] = Curve("lr", "learning rate")
    restart: ClassVar[str] = ""
    config: Settings

    def check(self, out: Path | None, resume: bool) -> None:
        """Refuse what can be refused before data are read.

        Args:
            out: the run's directory.
            resume: a run in it is gone on with, if there is one.

        """

    @abstractmethod
    def read(self) -> None:
        """Read the data, if that is not done, and refuse those that cannot be trained on."""

    def settings(self) -> dict[str, Any]:
        """The settings, with those that the data decided; what ``config.yaml`` says."""
        return self.config.to_dict()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What tells the data from others, as plain values: a run on others cannot go on with them."""

    @abstractmethod
    def finished(self, path: Path) -> Model:
        """The model of a finished run."""

    def unused(self) -> bool:
        """Whether a step may leave parameters without a gradient, which several processes have to know."""
        return False

    @abstractmethod
    def build(self) -> Model:
        """The model to be trained, with random weights from torch's own generators, or with those to begin with."""

    @abstractmethod
    def training(self, fabric: Fabric, model: Model, fresh: bool) -> AbstractContextManager[Training]:
        """Everything that a process trains with; what was done to the model is undone on leaving.

        Whatever can refuse the run has to do so on entering: after that, a former run may be replaced.

        Args:
            fabric: launched.
            model: from `build`, on the CPU.
            fresh: the run begins, and a checkpoint does not replace the weights.

        """

    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that a result depends on."""
        return package_versions("torch")

    @abstractmethod
    def load(self, model: Model, weights: dict[str, Tensor]) -> None:
        """Take the weights that `Training.weights` gave, after the last step."""

    @abstractmethod
    def evaluate(
        self, model: Model, metrics: list[dict[str, Any]], outcome: dict[str, Any], device: torch.device
    ) -> dict[str, Any]:
        """What ``result.json`` says of the trained model; called in the first process alone."""


def configured_engine(
    fabric: Fabric, objective: nn.Module, feed: Feed, config: Settings, **options: Any
) -> Engine:
    """The engine that settings ask for; ``options`` are further ones of `Engine`."""
    optimizer = build_optimizer(
        config.optimizer, objective, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    return Engine(
        fabric,
        objective,
        feed,
        optimizer,
        lambda epoch: learning_rate(config, epoch),
        epochs=config.epochs,
        compile=config.compile,
        **options,
    )
