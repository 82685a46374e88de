"""GraphCL's views: what each leaves alone, and how much it changes; seen by networkx and by hand."""

import networkx as nx
import pytest
import torch

from graphaug.graphs.batch import Batch, Graph, join, undirected
from graphaug.graphs.views import FUNCTIONS, drawn, random_view


def trees(seed=0, count=6):
    """Random connected graphs of 1 to 12 nodes; each node's first feature is a name of its own."""
    graphs, name = [], 1.0
    for i in range(count):
        nodes = (1, 2, 5, 9, 12, 7)[i % 6]
        tree = nx.random_labeled_tree(nodes, seed=seed + i) if nodes > 1 else nx.empty_graph(1)
        for u, v in nx.gnm_random_graph(nodes, nodes // 2, seed=seed + i).edges:
            tree.add_edge(u, v)
        pairs = torch.tensor(list(tree.edges), dtype=torch.int64).reshape(-1, 2).T
        names = torch.arange(nodes, dtype=torch.float32) + name
        name += nodes
        graphs.append(Graph(torch.stack([names, torch.ones(nodes)], 1), undirected(pairs)))
    return join(graphs)


def seen(graphs: Batch):
    """Each graph as networkx has it, its nodes called by their names."""
    names = graphs.x[:, 0].int().tolist()
    found = [nx.DiGraph() for _ in range(graphs.total)]
    for node, owner in enumerate(graphs.batch.tolist()):
        found[owner].add_node(names[node])
    for u, v in graphs.edge_index.T.tolist():
        assert graphs.batch[u] == graphs.batch[v]
        assert not found[int(graphs.batch[u])].has_edge(names[u], names[v])
        found[int(graphs.batch[u])].add_edge(names[u], names[v])
    for graph in found:
        assert all(graph.has_edge(v, u) for u, v in graph.edges)
        assert not list(nx.selfloop_edges(graph))
    return [graph.to_undirected() for graph in found]


def view(name, share, seed, graphs):
    generator = torch.Generator().manual_seed(seed)
    shares = torch.full((graphs.total,), share, dtype=torch.float64)
    return FUNCTIONS[name](graphs, shares, generator)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_share_of_nothing_changes_nothing(name):
    graphs = trees()
    after = view(name, 0.0, 0, graphs)
    assert torch.equal(after.x, graphs.x)
    assert torch.equal(after.batch, graphs.batch)
    assert [nx.utils.graphs_equal(a, b) for a, b in zip(seen(after), seen(graphs), strict=True)] == [True] * 6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_dropped_nodes_take_their_edges_along_and_one_stays(share, seed):
    before = trees(seed)
    for old, new in zip(seen(before), seen(view("drop", share, seed, before)), strict=True):
        assert len(new) == max(1, len(old) - round(share * len(old)))
        assert nx.utils.graphs_equal(new, nx.Graph(old.subgraph(new.nodes)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_subgraph_is_connected_and_as_large_as_it_can_be(share, seed):
    before = trees(seed)
    for old, new in zip(seen(before), seen(view("subgraph", share, seed, before)), strict=True):
        assert len(new) == max(1, len(old) - round(share * len(old)))  # these graphs are connected
        assert nx.is_connected(new)
        assert nx.utils.graphs_equal(new, nx.Graph(old.subgraph(new.nodes)))


def test_a_subgraph_of_a_graph_in_pieces_is_within_one():
    pieces = join([Graph(torch.arange(1.0, 7)[:, None], undirected(torch.tensor([[0, 2, 3], [1, 3, 4]])))])
    sizes = {len(seen(view("subgraph", 0.2, seed, pieces))[0]) for seed in range(20)}
    assert sizes == {1, 2, 3}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_perturbed_edges_are_as_many_or_fewer_and_the_rest_stays(share, seed):
    before = trees(seed)
    after = view("edges", share, seed, before)
    assert torch.equal(after.x, before.x)
    for old, new in zip(seen(before), seen(after), strict=True):
        moved = round(share * old.number_of_edges())
        kept = old.number_of_edges() - moved
        assert kept <= new.number_of_edges() <= old.number_of_edges()
        assert len({frozenset(e) for e in old.edges} & {frozenset(e) for e in new.edges}) >= kept


def test_masked_nodes_have_no_features_and_all_else_stays():
    before = trees()
    after = view("mask", 0.5, 0, before)
    masked = (after.x == 0).all(1)
    assert after.batch[masked].bincount(minlength=6).tolist() == [round(n / 2) for n in (1, 2, 5, 9, 12, 7)]
    assert torch.equal(after.x[~masked], before.x[~masked])
    assert torch.equal(after.edge_index, before.edge_index)


def test_every_subset_is_drawn_equally_often():
    generator, owner = torch.Generator().manual_seed(0), torch.tensor([0, 0, 0, 0, 1])
    counts = torch.zeros(4)
    for _ in range(600):
        mask = drawn(owner, torch.tensor([2, 0]), generator)
        assert int(mask.sum()) == 2
        assert not mask[4]
        counts += mask[:4]
    assert counts.div(600).tolist() == pytest.approx([0.5] * 4, abs=0.08)


def test_each_graph_is_changed_in_one_way_of_its_own():
    graphs = join(
        [
            Graph(
                torch.ones(10, 1),
                undirected(torch.arange(10).repeat(2, 1).add(torch.tensor([[0], [1]])) % 10),
            )
        ]
        * 40
    )
    after = random_view(graphs, ("drop", "mask"), 0.2, torch.Generator().manual_seed(0))
    sizes = after.sizes
    masked = after.batch[after.x[:, 0] == 0].bincount(minlength=40)
    assert {(int(n), int(m)) for n, m in zip(sizes, masked, strict=True)} == {(8, 0), (10, 2)}
