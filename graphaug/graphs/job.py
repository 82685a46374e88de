"""What trains on graphs: the two views, encoder, augmentation, loss and engine put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.losses import LOSSES
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.task import Training, configured_engine
from graphaug.graphs.batch import Batch, Graph, join, undirected
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data.graphs import GraphData
from graphaug.graphs.encoder import GIN
from graphaug.graphs.views import random_view
from graphaug.weights import perturb_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def graph_training(
    fabric: Fabric, model: GIN, config: GraphsConfig, data: GraphData
) -> Iterator[GraphTraining]:
    """An encoder with its augmentation, and all that trains it.

    Raises:
        GraphaugError: what ``graphaug.rewrite`` raises about the sites.

    """
    model.to(fabric.device)

    def example() -> dict[str, Tensor]:
        return rings(model.sizes["features"]).inputs(fabric.device)

    with deep_augmented(model, config, example, "the encoder", rows="batch") as network:
        # SimGRACE moves the encoder's weights, and the head's are those of the other view.
        moved = None
        if config.method == "simgrace":
            moved = perturb_weights(network, "pool", config.eta, example_inputs=example())
        objective = GraphObjective(network, config, moved)
        feed = GraphFeed(data.of(data.train), config, fabric.device)
        engine = configured_engine(fabric, objective, feed, config)
        counts = {"skipped": len(data.skipped), "steps_per_epoch": feed.steps, **model.sizes}
        plans = {"plan": str(getattr(network, "plan", "no Deep Augmentation"))}
        yield GraphTraining(engine, counts, plans, model)


def rings(features: int) -> Batch:
    """Four rings of 3 to 6 nodes, by which a model is captured."""
    graphs = []
    for nodes in (3, 5, 4, 6):
        one = torch.arange(nodes)
        x = torch.linspace(0, 1, nodes * features).reshape(nodes, features)
        graphs.append(Graph(x, undirected(torch.stack([one, one.roll(1)]))))
    return join(graphs)


class GraphObjective(nn.Module):
    """Embeddings of two views, and the loss.

    Args:
        network: graphs → embeddings, with or without Deep Augmentation.
        config: loss and temperature.
        moved: the network with moved weights, for the second view of each graph (SimGRACE); None where a batch holds
            both views.

    """

    def __init__(self, network: nn.Module, config: GraphsConfig, moved: nn.Module | None) -> None:
        super().__init__()
        self.network, self.moved = network, moved
        self.loss, self.temperature = LOSSES[config.loss], config.temperature

    def forward(
        self, rows: Tensor, x: Tensor, edge_index: Tensor, batch: Tensor, ptr: Tensor
    ) -> dict[str, Tensor]:
        """The measures of a batch.

        Args:
            rows: ``(B,)``, which graphs they are; the engine counts them.
            x: ``(nodes, features)`` of the graphs, or of ``[x1; x2]``, all first and all second views.
            edge_index: ``(2, edges)``.
            batch: ``(nodes,)``, in which of B or 2B graphs each node is.
            ptr: where each of these begins, and the last one ends.

        Returns:
            ``loss`` in nats, and ``spread``, see `embedding_spread`.

        """
        # The moved pass first: it puts back what the backward of the other one needs as it was.
        other = None if self.moved is None else self._of_moved(x, edge_index, batch, ptr)
        z = self.network(x, edge_index, batch, ptr)
        z1, z2 = z.chunk(2) if other is None else (z, other)
        with torch.autocast(z.device.type, enabled=False):
            z1, z2 = z1.float(), z2.float()
            loss = self.loss(z1, z2, self.temperature)
            return {"loss": loss, "spread": embedding_spread(torch.cat([z1, z2]).detach())}

    @torch.no_grad()
    def _of_moved(self, *inputs: Tensor) -> Tensor:
        """The second view, without a gradient as in SimGRACE's code; its batch statistics are not kept."""
        assert self.moved is not None
        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        statistics = [buffer for norm in norms for buffer in norm.buffers()]
        kept = [buffer.clone() for buffer in statistics]
        z: Tensor = self.moved(*inputs)
        for buffer, before in zip(statistics, kept, strict=True):
            buffer.copy_(before)
        return z


class GraphFeed:
    """Shuffled graphs, with GraphCL each in two views. Order and views have generators of their own, on the CPU.

    Args:
        graphs: that are trained on.
        config: batch size, seed, and how views are made.
        device: where batches go.

    """

    def __init__(self, graphs: Sequence[Graph], config: GraphsConfig, device: torch.device) -> None:
        self.graphs, self.config, self.device = graphs, config, device
        self.steps = len(graphs) // config.batch_size
        self.order, self.views = (torch.Generator().manual_seed(config.seed) for _ in range(2))
        self.shuffled = torch.empty(0, dtype=torch.int64)
        self._before_epoch = self.order.get_state()

    def start_epoch(self) -> None:
        """Draw the order of an epoch."""
        self._before_epoch = self.order.get_state()
        self.shuffled = torch.randperm(len(self.graphs), generator=self.order)

    def batches(self, step: int) -> Iterator[tuple[Tensor, ...]]:
        """The batch of a step: which graphs, and what the network is called with."""
        size = self.config.batch_size
        rows = self.shuffled[step * size : (step + 1) * size]
        graphs = join([self.graphs[row] for row in rows.tolist()])
        if self.config.method == "graphcl":
            first, second = (
                random_view(graphs, self.config.views, self.config.ratio, self.views) for _ in range(2)
            )
            graphs = first.beside(second)
        yield rows, *graphs.inputs(self.device).values()

    def state_dict(self, new_epoch: bool) -> dict[str, Any]:
        """Both generators; the one of the order as it was before this epoch, or with ``new_epoch`` as it is."""
        order = self.order.get_state() if new_epoch else self._before_epoch
        return {"order": order, "views": self.views.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.order.set_state(state["order"])
        self.views.set_state(state["views"])


@dataclass
class GraphTraining(Training):
    """A training on graphs."""

    engine: Engine
    counts: dict[str, int]
    plans: dict[str, str]
    model: GIN

    def weights(self) -> dict[str, Tensor]:
        """The encoder's weights, with its head."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def snapshot(self, run: RunDirectory, at: int) -> None:
        """Write the encoder in the form of ``encoder.safetensors``."""
        run.snapshot(at, self.weights(), self._metadata())

    def write(self, run: RunDirectory) -> None:
        """Write ``encoder.safetensors``."""
        run.encoder(self.weights(), self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {"gin": json.dumps(self.model.sizes)}
