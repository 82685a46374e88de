"""The graph isomorphism network (Xu et al. 2019) as GraphCL and SimGRACE train it, with sites that separate."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from graphaug.contrastive.fitting import fitting
from graphaug.errors import CheckpointError
from graphaug.graphs.batch import Graph, join
from graphaug.graphs.packages import geometric

FILE = "encoder.safetensors"


class Layer(nn.Module):
    """torch_geometric's GINConv around two linear maps, ReLU, batch normalisation."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        maps = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.conv = geometric().GINConv(maps)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``(nodes, inputs)`` to ``(nodes, width)``."""
        normed: Tensor = self.norm(torch.relu(self.conv(x, edge_index)))
        return normed


class SumPool(nn.Module):
    """The sum over each graph's nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = geometric().global_add_pool

    def forward(self, x: Tensor, batch: Tensor, ptr: Tensor) -> Tensor:
        """``(nodes, width)`` to ``(graphs, width)``; the number of graphs is read off a shape, and not off data."""
        pooled: Tensor = self.sum(x, batch, len(ptr) - 1)
        return pooled


class GIN(nn.Module):
    """Layers, the sum over the nodes of the last one, and a projection head of two linear maps.

    GraphCL's code joins the sums of all layers; of one layer alone, every layer is a site that nothing gets around.
    In the paper's numbering 0 is what enters ``layers.0``, the nodes' features, and i is behind layer i; ``pool`` and
    ``head`` are sites, too.

    Args:
        features: of a node.
        width: of every layer, and of the embeddings.
        layers: how many.

    Raises:
        ConfigError: torch_geometric is not installed.

    """

    def __init__(self, features: int, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.sizes = {"features": features, "width": width, "layers": layers}
        self.layers = nn.ModuleList(Layer(width if i else features, width) for i in range(layers))
        self.pool = SumPool()
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, ptr: Tensor) -> Tensor:
        """Embeddings ``(graphs, width)`` behind the head.

        Args:
            x: ``(nodes, features)``.
            edge_index: ``(2, edges)``.
            batch: ``(nodes,)``, the graph of each node.
            ptr: ``(graphs + 1,)``, where each graph begins, and the last one ends.

        """
        for layer in self.layers:
            x = layer(x, edge_index)
        embedded: Tensor = self.head(self.pool(x, batch, ptr))
        return embedded


@torch.no_grad()
def embed(model: GIN, graphs: Sequence[Graph], chunk: int = 512) -> Tensor:
    """``(graphs, width)`` sums over the nodes, before the head, in eval mode; on the CPU."""
    device, mode = next(model.parameters()).device, model.training
    model.eval()
    found = []
    for start in range(0, len(graphs), chunk):
        inputs = join(graphs[start : start + chunk]).inputs(device)
        x = inputs["x"]
        for layer in model.layers:
            x = layer(x, inputs["edge_index"])
        found.append(model.pool(x, inputs["batch"], inputs["ptr"]).cpu())
    model.train(mode)
    return torch.cat(found)


def load_encoder(run: str | os.PathLike[str]) -> GIN:
    """The encoder of a finished run, in eval mode.

    Raises:
        CheckpointError: ``run`` is no directory of a run on graphs, or its encoder is damaged.

    """
    from safetensors import SafetensorError, safe_open

    path = Path(run) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            sizes = json.loads((file.metadata() or {})["gin"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is no encoder of graphs: {error}") from error
    with torch.random.fork_rng(devices=[]):
        model = GIN(**sizes)
    with fitting(repr(str(path))):
        model.load_state_dict(weights)
    return model.eval()
