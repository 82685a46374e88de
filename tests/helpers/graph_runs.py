"""A third modality, small graphs: all that it brings to a run, for the tests and for the processes they start."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.config.settings import Settings, setting
from graphaug.contrastive.gather import process_count, process_rank
from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.losses import info_nce
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.life import run_task
from graphaug.contrastive.runs.task import Task, Training, configured_engine
from graphaug.errors import DataError


@dataclass(frozen=True)
class GraphConfig(Settings):
    width: int = setting(8, "Features of a node.")
    edges: float = setting(0.8, "Share of the edges that a view keeps.")
    checkpoint_every: float = setting(1.0, "Epochs between checkpoints.")
    snapshot_every: int = setting(0, "Epochs between snapshots.")

    FREE: ClassVar[tuple[str, ...]] = ("checkpoint_every", "snapshot_every", "keep", "collapse")


CONFIG = GraphConfig(
    epochs=4, batch_size=8, lr=0.2, warmup=0.0, schedule="linear", at=("second",), stop_grad=True,
    checkpoint_every=0.5, snapshot_every=2, seed=3, accelerator="cpu",
)  # fmt: skip
"""Four steps an epoch."""


def graphs(count=36):
    """``(count, 5, 3)`` features of nodes and ``(count, 5, 5)`` symmetric adjacency, in two classes of density."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    upper = torch.rand(count, 5, 5, generator=generator) < (0.3 + 0.5 * labels).view(-1, 1, 1)
    upper = upper.float().triu(1)
    return torch.randn(count, 5, 3, generator=generator), upper + upper.mT, labels


class GraphEncoder(nn.Module):
    """Two rounds of messages, and the mean over the nodes."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, width)

    def forward(self, x, edges):
        x = torch.relu(self.first(x + edges @ x))
        return self.second(x + edges @ x).mean(1)


class GraphObjective(nn.Module):
    def __init__(self, network, temperature):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x, edges):
        z = self.network(x, edges)
        return {"loss": info_nce(*z.chunk(2), self.temperature), "spread": embedding_spread(z.detach())}


class GraphFeed:
    """Shuffled graphs, each in two views that lack some of its edges."""

    def __init__(self, x, edges, config):
        self.x, self.edges, self.config = x, edges, config
        self.steps = len(x) // config.batch_size
        self.order, self.views = (torch.Generator().manual_seed(config.seed) for _ in range(2))
        self.before = self.order.get_state()

    def start_epoch(self):
        self.before = self.order.get_state()
        self.shuffled = torch.randperm(len(self.x), generator=self.order)

    def batches(self, step):
        size = self.config.batch_size
        chosen = self.shuffled[step * size : (step + 1) * size]
        kept = torch.rand(2, size, 5, 5, generator=self.views) < self.config.edges
        share = size // process_count()
        own = slice(process_rank() * share, (process_rank() + 1) * share)
        x, edges = self.x[chosen][own], self.edges[chosen][own]
        yield torch.cat([x, x]), torch.cat([edges * view[own] for view in kept])

    def state_dict(self, new_epoch):
        return {
            "order": self.order.get_state() if new_epoch else self.before,
            "views": self.views.get_state(),
        }

    def load_state_dict(self, state):
        self.order.set_state(state["order"])
        self.views.set_state(state["views"])


@dataclass
class GraphTraining(Training):
    engine: object
    counts: dict
    plans: dict
    model: nn.Module

    def weights(self):
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def look(self, line, run):
        return {"norm": float(sum(p.detach().square().sum() for p in self.model.parameters()))}

    def snapshot(self, run, at):
        run.snapshot(at, self.weights(), {})

    def write(self, run):
        run.encoder(self.weights(), {})


class GraphTask(Task[nn.Module]):
    restart = "begin another run with its weights"

    def __init__(self, config, data=None):
        self.config, self.data = config, data

    def read(self):
        self.data = self.data or graphs()
        if len(self.data[0]) < self.config.batch_size:
            raise DataError("fewer graphs than a batch")

    def facts(self):
        return {"graphs": len(self.data[0]), "sum": float(sum(part.sum() for part in self.data))}

    def build(self):
        return GraphEncoder(self.config.width)

    @contextmanager
    def training(self, fabric, model, fresh):
        x, edges, _ = self.data
        with deep_augmented(model, self.config, lambda: (x[:4], edges[:4]), "graphs") as network:
            objective = GraphObjective(network, self.config.temperature)
            engine = configured_engine(fabric, objective, GraphFeed(x, edges, self.config), self.config)
            plans = {"plan": str(getattr(network, "plan", "none"))}
            yield GraphTraining(engine, {"steps_per_epoch": engine.feed.steps}, plans, model)

    def load(self, model, weights):
        model.load_state_dict(weights)

    def evaluate(self, model, metrics, outcome, device):
        """Accuracy of the nearer class mean."""
        x, edges, labels = self.data
        with torch.no_grad():
            z = model(x, edges)
        means = torch.stack([z[labels == label].mean(0) for label in (0, 1)])
        return {"accuracy": float((torch.cdist(z, means).argmin(1) == labels).float().mean())}

    def finished(self, path):
        model = self.build()
        model.load_state_dict(load_file(path / "encoder.safetensors"))
        return model


def run(out, kill_after=None, **options):
    """Start the run in ``out``, or go on with it; with ``kill_after``, be killed once that step is kept."""
    torch.set_num_threads(1)
    save = Checkpoints.save

    def save_and_die(self, step, state):
        save(self, step, state)
        if step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save_and_die
    try:
        return run_task(GraphTask(CONFIG), out, resume=True, **options)
    finally:
        Checkpoints.save = save
