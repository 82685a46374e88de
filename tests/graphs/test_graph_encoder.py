"""The encoder against GIN's closed form, and Deep Augmentation of whole graphs in it."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import graphaug as ga
from graphaug.errors import CheckpointError
from graphaug.graphs.batch import Graph
from graphaug.graphs.encoder import GIN, embed, load_encoder
from graphaug.graphs.job import rings

PTR = torch.tensor([0, 3, 8, 12, 18])


def model(layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GIN(3, 8, layers)


def by_hand(gin, x, adjacency):
    """Xu et al. 2019, eq. 4.1 with epsilon 0: an MLP of a node and the sum of its neighbours, with a dense matrix."""
    for layer in gin.layers:
        first, _, second = layer.conv.nn
        h = (adjacency + torch.eye(len(x))) @ x
        h = F.linear(F.linear(h, first.weight, first.bias).relu(), second.weight, second.bias).relu()
        norm = layer.norm
        x = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return x


def test_the_forward_is_the_closed_form():
    gin, graphs = model(), rings(3)
    gin(**graphs.inputs(torch.device("cpu")))  # statistics other than 0 and 1
    gin.eval()
    adjacency = torch.zeros(18, 18)
    adjacency[graphs.edge_index[0], graphs.edge_index[1]] = 1
    nodes = by_hand(gin, graphs.x, adjacency)
    pooled = torch.stack([nodes[graphs.batch == i].sum(0) for i in range(4)])
    torch.testing.assert_close(gin.pool(nodes, graphs.batch, PTR), pooled)
    first, _, second = gin.head
    headed = F.linear(F.linear(pooled, first.weight, first.bias).relu(), second.weight, second.bias)
    torch.testing.assert_close(gin(graphs.x, graphs.edge_index, graphs.batch, PTR), headed)


def test_embeddings_do_not_depend_on_the_chunk_or_the_mode():
    gin, graphs = model(), rings(3)
    starts = [0, 3, 8, 12, 18]
    own = [
        Graph(
            graphs.x[a:b], graphs.edge_index[:, (graphs.edge_index[0] >= a) & (graphs.edge_index[0] < b)] - a
        )
        for a, b in pairwise(starts)
    ]
    with torch.no_grad():
        h = gin.eval().layers[1](gin.layers[0](graphs.x, graphs.edge_index), graphs.edge_index)
    whole = torch.stack([h[a:b].sum(0) for a, b in pairwise(starts)])
    torch.testing.assert_close(embed(gin.train(), own, chunk=3), whole)
    assert gin.training


@pytest.mark.parametrize("at", ["layers.0", 2, "pool"])
def test_stopped_graphs_send_nothing_below_the_site(at):
    gin, graphs = model(), rings(3)
    inputs = graphs.inputs(torch.device("cpu"))
    aug = ga.rewrite(gin, at, stop_grad=True, rows="batch", example_inputs=inputs).train()
    got = []
    path = {"layers.0": "layers.0", 2: "layers.1", "pool": "layers.1"}[at]
    # A hook on what leaves the layer, in front of the augmentation.
    gin.get_submodule(path).register_forward_hook(lambda _, __, out: out.register_hook(got.append) and None)
    torch.manual_seed(0)
    z = aug(**inputs)
    (drawn,) = aug.drawn.values()
    z.square().sum().backward()
    stopped = drawn.rows[graphs.batch]
    assert int(drawn.rows.sum()) == 2
    assert bool((got[0][stopped] == 0).all())
    assert bool((got[0][~stopped] != 0).any(1).all())


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no encoder of graphs"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no encoder of graphs"):
        load_encoder(tmp_path)
