"""The drawing: which node is in which part, and that a picture is written."""

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

import graphaug
from graphaug.draw import COLOURS, draw_graph, layout
from graphaug.errors import InvalidOption, NotRewritten


@pytest.fixture(scope="module")
def resnet():
    return torchvision.models.resnet18()


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.first(x)
        return self.last(self.middle(h) + h)


def parts(aug):
    return {node.label.split("\n")[0]: node.part for node in layout(aug)[0].values()}


def test_prefix_cut_and_suffix(resnet):
    found = parts(graphaug.rewrite(resnet, at="layer4"))
    assert found["layer4"] == found["conv1"] == "prefix"
    assert found["DeepAugment"] == "cut"
    assert found["avgpool"] == found["fc"] == found["output"] == "suffix"
    assert list(found.values()).count("cut") == 1


def test_the_cut_says_what_it_does(resnet):
    aug = graphaug.rewrite(resnet, at="layer4", rate=0.3, subset=0.25, stop_grad=True)
    (label,) = [node.label for node in layout(aug)[0].values() if node.part == "cut"]
    assert label == "DeepAugment\nrate 0.3, subset 0.25\ngradient stopped"


def test_no_bypass_where_the_cut_separates(resnet):
    assert layout(graphaug.rewrite(resnet, at="layer2"))[2] == set()


def test_a_bypass_is_the_edge_from_the_prefix_past_the_cut():
    aug = graphaug.rewrite(Skipping(), at="middle", allow_bypass=True)
    nodes, _, bypass = layout(aug)
    ((source, target),) = bypass
    assert nodes[source].label.startswith("first")
    assert nodes[target].label.startswith("add")
    assert nodes[target].part == "suffix"


def test_a_bypass_of_one_cut_stays_visible_beside_a_cut_that_separates():
    bypass = layout(graphaug.rewrite(Skipping(), at=["middle", "last"], allow_bypass=True))[2]
    assert len(bypass) == 1
    assert layout(graphaug.rewrite(Skipping(), at=["first", "last"]))[2] == set()


def test_edges_point_downwards_and_no_two_nodes_share_a_place(resnet):
    nodes, graph, _ = layout(graphaug.rewrite(resnet, at="layer4.1.add"))
    assert nx.is_directed_acyclic_graph(graph)
    assert all(nodes[a].place[1] < nodes[b].place[1] for a, b in graph.edges)
    assert len({node.place for node in nodes.values()}) == len(nodes)


def test_a_picture_has_every_label_and_colour(tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text as text, to be read here
    aug = graphaug.rewrite(Skipping(), at="middle", allow_bypass=True)
    text = draw_graph(aug, tmp_path / "x.svg").read_text()
    for label in ("first", "middle", "last", "DeepAugment", "bypass", "prefix", "suffix", "cut"):
        assert label in text
    for part in ("prefix", "cut", "suffix"):
        assert COLOURS[part] in text
    assert "#cc0000" in text


def test_png(resnet, tmp_path):
    path = draw_graph(graphaug.rewrite(resnet, at=["layer2", "layer4"]), tmp_path / "x.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_input(resnet, tmp_path):
    aug = graphaug.rewrite(resnet, at="layer4")
    with pytest.raises(InvalidOption, match=r"ends in \.svg, \.png, \.pdf"):
        draw_graph(aug, tmp_path / "x.gif")
    with pytest.raises(InvalidOption, match="cannot be written"):
        draw_graph(aug, tmp_path / "no" / "x.png")
    with pytest.raises(NotRewritten, match="not ResNet"):
        draw_graph(resnet, tmp_path / "x.png")


def test_drawing_leaves_the_model_and_the_random_state(resnet, tmp_path):
    aug = graphaug.rewrite(resnet, at="layer4")
    code, state = aug.code, torch.get_rng_state()
    draw_graph(aug, tmp_path / "x.png")
    assert aug.code == code
    assert torch.equal(torch.get_rng_state(), state)
