"""Samples that an input tells: a graph network's nodes by the ``batch`` vector of torch_geometric."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.augment.rows import Members
from graphaug.errors import BatchError, InvalidOption, SparseBackwardError

SIZES = (3, 5, 2, 4, 6, 3)  # nodes of each graph


class Convolution(nn.Module):
    """A layer of GIN (Xu et al. 2019, equation 4.1): an MLP of a node and the sum of its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.mlp(x.index_add(0, edge_index[1], x[edge_index[0]]))


class GIN(nn.Module):
    """Two layers, a sum over each graph's nodes, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Convolution(4), Convolution(8), nn.Linear(8, 3)
        self.pooled = nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.second(self.first(x, edge_index).relu(), edge_index).relu()
        graphs = h.new_zeros(6, 8).index_add(0, batch, h)
        return self.head(self.pooled(graphs))


def graphs(crossing: bool = False) -> dict[str, Tensor]:
    """Rings, and perhaps an edge from the first graph to the second."""
    generator = torch.Generator().manual_seed(0)
    edges, start = [], 0
    for n in SIZES:
        nodes = torch.arange(start, start + n)
        edges.append(torch.stack([nodes, nodes.roll(1)]))
        start += n
    if crossing:
        edges.append(torch.tensor([[0], [SIZES[0]]]))
    batch = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    return {
        "x": torch.randn(start, 4, generator=generator),
        "edge_index": torch.cat(edges, 1),
        "batch": batch,
    }


def rewritten(at: str = "first", **options: Any) -> Any:
    torch.manual_seed(0)
    return ga.rewrite(
        GIN(), at, rows="batch", example_inputs=graphs(), **{"rate": 1.0, "subset": 0.5, **options}
    ).train()


@pytest.mark.parametrize("stop_grad", [True, False])
def test_whole_graphs_are_drawn_and_their_nodes_stopped(stop_grad: bool) -> None:
    aug, inputs = rewritten(stop_grad=stop_grad), graphs()
    (augmentation,) = aug.augmentations.values()
    assert isinstance(augmentation.place, Members)
    assert "rows: samples are told by 'batch', for each of 23 along dimension 0" in str(aug.plan)
    seen: list[tuple[Tensor, Tensor]] = []
    augmentation.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    drawn = set()
    for seed in range(5):
        torch.manual_seed(seed)
        aug(**inputs)
        entered, left = seen[-1]
        of_nodes = (left == 0).all(1)  # at rate 1 nothing is left of a node
        of_graphs = {int(g) for g in inputs["batch"][of_nodes]}
        assert of_nodes.tolist() == [int(g) in of_graphs for g in inputs["batch"]]
        assert len(of_graphs) == 3
        assert torch.equal(left[~of_nodes], entered[~of_nodes])
        drawn.add(frozenset(of_graphs))
    assert len(drawn) > 1
    claims = str(ga.verify(aug, inputs))
    assert "3 of 6 rows augmented" in claims


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.5}, {"rate": 0.5, "granularity": "position"}, {"rate": 0.5, "pairing": "one-sided"}],
)
def test_verify_speaks_of_samples(options: dict[str, Any]) -> None:
    aug = rewritten("second", stop_grad=True, **options)
    ga.verify(aug, graphs())
    (augmentation,) = aug.augmentations.values()
    augmentation.stop_grad = False
    with pytest.raises(ga.GraphaugError, match="rows"):
        ga.verify(aug, graphs())


def test_behind_the_pooling_a_graph_is_a_row() -> None:
    aug = rewritten("pooled", stop_grad=True)
    assert aug.plan.sites[0].rows == "dimension 0 of 6×8, 6 samples"
    ga.verify(aug, graphs())


def test_the_backward_is_dense_and_the_plan_says_that_nothing_is_proved() -> None:
    aug = rewritten(stop_grad=True)
    assert (aug.plan.backward, "told by an input" in aug.plan.reason) == ("dense", True)
    assert any("tried on the example, not proved" in note for note in aug.plan.notes)
    with pytest.raises(SparseBackwardError, match="told by an input"):
        rewritten(stop_grad=True, backward="sparse")


def test_another_batch_tells_its_own_graphs_and_a_copy_too() -> None:
    aug, inputs = copy.deepcopy(rewritten()), graphs()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    mixed = {
        "x": inputs["x"][order],
        "edge_index": place[inputs["edge_index"]],
        "batch": inputs["batch"][order],
    }
    aug.eval()
    torch.testing.assert_close(aug(**mixed), aug(**inputs))
    aug.train()
    ga.verify(aug, mixed)
    with pytest.raises(BatchError, match="tells of 22 entries, and the site's value has 23"):
        aug(**{**inputs, "batch": inputs["batch"][1:]})


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({}, "btch", "no input of the model. Did you mean 'batch'"),
        ({}, "x", "whole numbers"),
        ({"batch": torch.zeros(23).long()}, "batch", "tells of 1 samples"),
        ({"batch": torch.arange(23)}, "batch", "more entries than samples"),
        (graphs(crossing=True), "batch", "other samples change when sample 0"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Tensor], name: str, said: str) -> None:
    class Loose(GIN):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return self.head(self.second(self.first(x, edge_index), edge_index))

    with pytest.raises(InvalidOption, match=said):
        ga.rewrite(Loose(), "second", rows=name, example_inputs={**graphs(), **change})


def test_a_site_of_neither_nodes_nor_graphs_is_an_error() -> None:
    class Edges(GIN):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return self.pooled(self.first(x, edge_index)[edge_index[0][:7]])

    with pytest.raises(InvalidOption, match="choose a site with one of these"):
        ga.rewrite(Edges(), "pooled", rows="batch", example_inputs=graphs())


def test_the_table_of_sites_shows_what_is_told() -> None:
    table = {s.path: s for s in ga.sites(GIN(), graphs(), rows="batch")}
    assert {table[p].rows for p in ("first", "second")} == {"0, by 'batch'"}
    assert table["pooled"].rows == "0"  # behind the sum every row is a graph
    plan = rewritten("second", stop_grad=True).plan
    assert {s.backward for s in table.values()} == {"dense: samples are told by an input"}
    assert plan.backward == "dense"
    assert plan.reason.startswith("samples are told by an input")


@pytest.mark.parametrize(
    ("rows", "said"),
    [("bach", "Did you mean 'batch'"), ("x", "whole numbers"), (7, "dimensions 0 to 1")],
)
def test_the_table_refuses_what_tells_nothing(rows: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        ga.sites(GIN(), graphs(), rows=rows)


def test_the_table_takes_a_told_dimension() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 6, 4)
    assert [s.rows for s in ga.sites(model, x, rows=1)] == ["1"] * 4
    with pytest.raises(InvalidOption, match="example_inputs"):
        ga.sites(model, rows=1)
