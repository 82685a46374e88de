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


@pytest.mark.long
def test_prefix_cut_and_suffix(resnet):
    found = parts(graphaug.rewrite(resnet, at="layer4"))
    assert found["layer4"] == found["conv1"] == "prefix"
    assert found["DeepAugment"] == "cut"
    assert found["avgpool"] == found["fc"] == found["output"] == "suffix"
    assert list(found.values()).count("cut") == 1


@pytest.mark.long
def test_the_cut_says_what_it_does(resnet):
    aug = graphaug.rewrite(resnet, at="layer4", rate=0.3, subset=0.25, stop_grad=True)
    (label,) = [node.label for node in layout(aug)[0].values() if node.part == "cut"]
    assert label == "DeepAugment\nrate 0.3, subset 0.25\ngradient stopped"


@pytest.mark.long
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


@pytest.mark.long
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


class Branches(nn.Module):
    """Ways of different length past each other, and a parameter that is used late."""

    def __init__(self):
        super().__init__()
        self.first, self.end = nn.Linear(4, 4), nn.Linear(16, 2)
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.a_parameter_with_a_long_name = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        h = self.first(x)
        one, two, three, four = (branch(h) for branch in self.branches)
        four = four + self.a_parameter_with_a_long_name
        return self.end(torch.cat([one, torch.relu(torch.tanh(two)), three, four + x], 1))


@pytest.mark.parametrize("model", ["branches", "skipping", "resnet"])
@pytest.mark.long
def test_arrows_end_at_boxes_and_go_round_the_others(model, resnet, tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    made = {"branches": (Branches(), "branches.1"), "skipping": (Skipping(), "middle")}
    plain, at = made.get(model, (resnet, "layer4.0.conv2"))
    aug = graphaug.rewrite(plain, at=at, allow_bypass=True)
    draw_graph(aug, tmp_path / "x.svg")
    nodes, graph, bypass = layout(aug)
    (axes,) = figures[0].axes
    figures[0].draw_without_rendering()
    inverse = axes.transData.inverted()
    boxes = [text.get_bbox_patch().get_window_extent().transformed(inverse) for text in axes.texts]
    places = {node.place: name for name, node in nodes.items()}
    named = {
        places[(text.get_position()[0], -text.get_position()[1])]: box
        for text, box in zip(axes.texts, boxes, strict=True)
    }
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == graph.number_of_edges() > len(bypass) > 0
    for arrow, (source, target) in zip(arrows, graph.edges, strict=True):
        line = arrow._path_original  # in the data's coordinates, before it is shortened
        (x0, y0), (x1, y1) = line.vertices[0], line.vertices[-1]
        assert named[source].x0 < x0 < named[source].x1
        assert y0 == pytest.approx(named[source].y0)
        assert named[target].x0 < x1 < named[target].x1
        assert y1 == pytest.approx(named[target].y1)
        for name, box in named.items():
            crossed = line.intersects_bbox(box.padded(-1e-6), filled=False)
            assert not crossed, f"{source} → {target} goes through {name}"
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    inside = [b for b in boxes if axes.viewLim.x0 <= b.x0 and b.x1 <= axes.viewLim.x1]
    assert len(inside) == len(boxes)


def test_long_labels_break_at_seams():
    aug = graphaug.rewrite(Branches(), at="first", allow_bypass=True)
    labels = {node.label for node in layout(aug)[0].values()}
    assert "a_parameter_with_a_long_name" in labels
    from graphaug.draw.layout import _shorten

    assert _shorten("encoder.layers.encoder_layer_10") == "encoder.layers.encoder_layer_\n10"
    assert _shorten("BaseModelOutputWithPoolingAndCrossAttentions()") == (
        "BaseModelOutputWithPoolingAnd\nCrossAttentions()"
    )
    assert _shorten("x" * 100) == "\n".join(["x" * 30, "x" * 30, "x" * 28 + " …"])


@pytest.mark.long
def test_png(resnet, tmp_path):
    path = draw_graph(graphaug.rewrite(resnet, at=["layer2", "layer4"]), tmp_path / "x.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_bad_input(resnet, tmp_path):
    aug = graphaug.rewrite(resnet, at="layer4")
    with pytest.raises(InvalidOption, match=r"ends in \.svg, \.png, \.pdf"):
        draw_graph(aug, tmp_path / "x.gif")
    with pytest.raises(InvalidOption, match="cannot be written"):
        draw_graph(aug, tmp_path / "no" / "x.png")
    with pytest.raises(NotRewritten, match="not ResNet"):
        draw_graph(resnet, tmp_path / "x.png")


@pytest.mark.long
def test_drawing_leaves_the_model_and_the_random_state(resnet, tmp_path):
    aug = graphaug.rewrite(resnet, at="layer4")
    code, state = aug.code, torch.get_rng_state()
    draw_graph(aug, tmp_path / "x.png")
    assert aug.code == code
    assert torch.equal(torch.get_rng_state(), state)


class Plumbed(nn.Module):
    """Sizes and what is reckoned from them, entries of a tuple, a slice, a look-up, and a mask beside the cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.pair, self.end = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, keep):
        h = self.stem(x)
        length = (h.shape[1] + 1) // 2 * 2
        h, (last, _) = self.pair(h)
        h = h[:, : length // 2].reshape(h.size(0), -1, 4) * torch.ones_like(h[:, :1])
        return self.end(h[:, 0] + last[0] + h[:, keep].sum(1))


@pytest.mark.long
def test_look_ups_and_the_arithmetic_of_shapes_are_left_out():
    example = {"x": torch.randn(2, 6, 4), "keep": torch.tensor([1, 2])}
    nodes, graph, _ = layout(graphaug.rewrite(Plumbed(), at="stem", example_inputs=example))
    operations = ["[:, :…]", "reshape()", "[:, :1]", "ones_like()", "mul()", "[:, 0]", "[:, …]", "sum()"]
    labels = sorted(node.label.split("\n")[0] for node in nodes.values())
    assert labels == sorted(
        ["x", "keep", "stem", "DeepAugment", "pair", *operations, "add()", "add()", "end", "output"]
    )
    named = {node.label.split("\n")[0]: name for name, node in nodes.items()}
    below = {nodes[name].label for name in graph.successors(named["pair"])}
    assert below == {
        "[:, :…]",
        "[:, :1]",
        "add()",
    }  # one entry of its output enters both slices, another the sum
    assert {nodes[name].label for name in graph.predecessors(named["reshape()"])} == {"[:, :…]"}


class Masked(nn.Module):
    """What is made of the type and the size of a value passes its site, and is no way around it."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids, mask):
        h = self.embed(ids)
        shown = torch.where(mask[..., None] > 0, torch.ones_like(h), torch.zeros_like(h))
        return self.second(self.first(h * shown) * shown)


def test_what_the_plan_says_separates_is_not_drawn_as_bypassed():
    ids = torch.randint(9, (2, 3))
    model, example = Masked(), {"ids": ids, "mask": torch.ones_like(ids)}
    aug = graphaug.rewrite(model, at="first", example_inputs=example)
    nodes, graph, bypass = layout(aug)
    assert nx.has_path(
        graph.subgraph(set(graph) - {n for n in graph if nodes[n].part == "cut"}), "ids", "output"
    )
    assert "separates the input from the output" in str(aug.plan)
    assert bypass == set()
    (edge,) = layout(graphaug.rewrite(Skipping(), at="middle", allow_bypass=True))[2]
    assert edge[1].startswith("add")
