"""Contrastive training on graphs with Deep Augmentation: what graphs bring to a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphaug.contrastive.runs.life import run_task
from graphaug.contrastive.runs.task import Task, Training
from graphaug.errors import ConfigError, DataError
from graphaug.graphs.config import GraphsConfig, versions
from graphaug.graphs.data.graphs import GraphData, fingerprint, load
from graphaug.graphs.encoder import GIN, embed, load_encoder
from graphaug.graphs.job import graph_training
from graphaug.graphs.packages import geometric

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class GraphsResult:
    """``encoder``: with its head; ``metrics``: a dict an epoch; ``result``: what the probes gave."""

    encoder: GIN
    metrics: list[dict[str, Any]]
    result: dict[str, Any]


def train_graphs(
    config: GraphsConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    data: GraphData | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> GraphsResult:
    """Train an encoder of graphs, and probe it.

    All checks come first: nothing is written, and no step is made, before the graphs are read, the encoder is rewritten
    and the output directory is free. The caller's random state is left as it was. What is reported is the last epoch.

    Args:
        config: the settings.
        out: directory for ``config.yaml``, ``metrics.jsonl``, ``encoder.safetensors``, ``result.json`` and
            ``curves.png``, and for checkpoints until the run is finished; None writes nothing.
        force: replace another run in ``out``.
        resume: go on with the run in ``out``, if there is one, from its last good checkpoint; on the CPU the result is
            that of an unbroken run, bit for bit. Of a finished run the result is read.
        data: the graphs, already read and split; by default what ``config.data`` names.
        on_epoch: called with the metrics of each epoch.
        on_step: called behind steps, once a second at most; see `run_task`.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        DataError: the graphs are missing, unreadable, without labels, or fewer than a batch.
        ConfigError: options of Deep Augmentation without a site, a package that is missing, or the run in ``out`` has
            other settings or other data.
        CheckpointError: no checkpoint of the run is undamaged, or it makes none and cannot go on.
        TrainingDiverged: the loss became NaN or infinite.
        TrainingCollapsed: the embeddings became one point.
        GraphaugError: whatever ``graphaug.rewrite`` raises about the sites.

    """
    done = run_task(
        GraphTask(config, data), out, force=force, resume=resume, on_line=on_epoch, on_step=on_step
    )
    return GraphsResult(done.model, done.metrics, done.result)


class GraphTask(Task[GIN]):
    """A training on graphs, probed at its end; ``data``: already read, by default what ``config.data`` names."""

    def __init__(self, config: GraphsConfig, data: GraphData | None = None) -> None:
        self.config: GraphsConfig = config
        self.given = data

    @property
    def data(self) -> GraphData:
        """The graphs, once they are read."""
        assert self.given is not None
        return self.given

    def check(self, out: Path | None, resume: bool) -> None:
        """Refuse options of a site where there is none, and to train without the package that it takes."""
        geometric()
        names = ("stop_grad", "freeze")
        idle = [name for name in names if getattr(self.config, name) != getattr(GraphsConfig, name)]
        if idle and not (self.config.at or self.config.everywhere):
            raise ConfigError(
                f"{', '.join(idle)} without a site: there is no Deep Augmentation to change. Name a site with "
                "at= (--at)."
            )

    def read(self) -> None:
        """Read and split the graphs, and refuse fewer than a batch."""
        self.given = self.given or load(self.config)
        if self.config.batch_size > len(self.data.train):
            raise DataError(
                f"batch_size={self.config.batch_size} is larger than the {len(self.data.train)} graphs of "
                f"{self.data.name!r} that are trained on: give at most {len(self.data.train)}, or more graphs."
            )

    def facts(self) -> dict[str, Any]:
        """Counts, and a hash of graphs and labels."""
        return fingerprint(self.data)

    def finished(self, path: Path) -> GIN:
        """The encoder of a finished run."""
        return load_encoder(path)

    def build(self) -> GIN:
        """The encoder, as wide at its input as the graphs' nodes."""
        return GIN(self.data.graphs[0].x.shape[1], self.config.width, self.config.layers)

    def training(self, fabric: Fabric, model: GIN, fresh: bool) -> AbstractContextManager[Training]:
        """See `graph_training`."""
        return graph_training(fabric, model, self.config, self.data)

    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that a result depends on."""
        return versions()

    def load(self, model: GIN, weights: dict[str, Tensor]) -> None:
        """Take trained weights."""
        model.load_state_dict(weights)

    def evaluate(
        self, model: GIN, metrics: list[dict[str, Any]], outcome: dict[str, Any], device: torch.device
    ) -> dict[str, Any]:
        """Probe the frozen encoder; of graphs without labels there is nothing to probe."""
        return probe(model.to(device), self.data)


def probe(encoder: GIN, data: GraphData) -> dict[str, Any]:
    """How much of the labels can be read off frozen embeddings, by a probe of scikit-learn's on the training part.

    Of classes ``linear``, the accuracy of logistic regression; of values ``r2`` and ``mae`` of ridge regression, whose
    penalty cross-validation within the training part chooses. ``validation`` has the same on graphs that were held out
    for it. The test part is read here, once.
    """
    counts = {"train_graphs": len(data.train), "test_graphs": len(data.test), "skipped": len(data.skipped)}
    if data.labels is None:
        return counts
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import mean_absolute_error
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = embed(encoder, data.graphs).double().numpy(), data.labels.numpy()
    if not torch.as_tensor(x).isfinite().all():
        raise DataError("the embeddings are not all finite: the encoder has diverged.")
    last = LogisticRegression(max_iter=1000) if data.classes else RidgeCV([10.0**k for k in range(-3, 4)])
    model = make_pipeline(StandardScaler(), last)
    with warnings.catch_warnings():
        # Of separable embeddings the optimum is far out; the last iterations do not change the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[list(data.train)], y[list(data.train)])

    def scores(places: tuple[int, ...]) -> dict[str, float]:
        part, truth = x[list(places)], y[list(places)]
        if data.classes:
            return {"linear": float(model.score(part, truth))}
        mae = float(mean_absolute_error(truth, model.predict(part)))
        return {"r2": float(model.score(part, truth)), "mae": mae}

    held = {"validation": scores(data.validation)} if data.validation else {}
    return {**scores(data.test), **held, **counts, "classes": len(data.classes), "features": x.shape[1]}
