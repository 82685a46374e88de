"""Stretches planted in matrices are found, noise has none, and advice leads to a rewrite that holds."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphaug
from graphaug import errors
from graphaug.analysis import Suggestion, advise, cka, stretches
from graphaug.analysis.advise import advice_of, candidates
from graphaug.analysis.cka import CKA
from graphaug.analysis.segments import threshold_of

pytestmark = pytest.mark.few(4)


def planted(lengths, inside=0.95, outside=0.2, noise=0.0, seed=0):
    """A matrix of stretches, one after the other; a length of 1 is a site by itself."""
    n = sum(lengths)
    labels = np.repeat(np.arange(len(lengths)), lengths)
    matrix = np.where(labels[:, None] == labels[None], inside, outside)
    jitter = np.random.default_rng(seed).normal(0, noise, (n, n))
    matrix = np.clip(matrix + (jitter + jitter.T) / 2, -1, 1)
    np.fill_diagonal(matrix, 1)
    return torch.from_numpy(matrix)


def spans(found):
    return sorted((s.start, s.end) for s in found)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 5), min_size=2, max_size=6), seed=st.integers(0, 999))
def test_planted_stretches_are_found(lengths, seed):
    matrix = planted(lengths, noise=0.02, seed=seed)
    found = stretches(matrix, threshold=0.6)
    ends = list(itertools.accumulate(lengths))
    assert spans(found) == [(e - n, e - 1) for n, e in zip(lengths, ends, strict=True) if n > 1]
    assert all(s.similarity == pytest.approx(0.95, abs=0.05) for s in found)
    assert [s.strength for s in found] == sorted((s.strength for s in found), reverse=True)


def test_the_default_threshold_finds_them_too():
    found = stretches(planted([2, 4, 1, 3], noise=0.02))
    assert spans(found) == [(0, 1), (2, 5), (7, 9)]
    assert (found[0].start, found[0].length) == (2, 4)  # the longest is the strongest


@settings(max_examples=40)
@given(n=st.integers(3, 20), seed=st.integers(0, 999))
def test_noise_has_no_stretch(n, seed):
    assert stretches(planted([1] * n, outside=0.0, noise=0.1, seed=seed)) == []


def test_a_network_whose_layers_are_all_alike_has_none():
    assert stretches(planted([1] * 8, outside=0.999, noise=0.0005)) == []


def decaying(n, length, noise, seed=0):
    """Similarity that only falls with the distance between sites."""
    places = np.arange(n)
    matrix = np.exp(-np.abs(places[:, None] - places) / length)
    jitter = np.random.default_rng(seed).normal(0, noise, (n, n))
    matrix = np.clip(matrix + (jitter + jitter.T) / 2, -1, 1)
    np.fill_diagonal(matrix, 1)
    return torch.from_numpy(matrix)


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.005, 0.01])
@pytest.mark.parametrize("length", [1, 3, 10, 40, 100])
@pytest.mark.parametrize("n", [6, 10, 20])
def test_a_smooth_decay_has_no_stretch(n, length, noise):
    seeds = range(10 if noise else 1)
    assert sum(stretches(decaying(n, length, noise, seed)) != [] for seed in seeds) <= (noise == 0.01)
    assert stretches(decaying(n, length, 0.0), threshold=0.3) == []


def test_a_pace_of_decay_that_changes_has_no_stretch():
    for places in (np.arange(12) ** 1.2, 12 - np.arange(12)[::-1] ** 1.2, np.log1p(np.arange(12))):
        matrix = torch.from_numpy(np.exp(-np.abs(places[:, None] - places) / 5))
        assert stretches(matrix) == []


@pytest.mark.parametrize("gap", [2, 4, 8])
def test_steps_in_a_decay_bound_stretches(gap):
    """Sites one apart within stages, ``gap`` apart between them."""
    places = np.cumsum([0, 1, 1, gap, 1, 1, gap, 1, 1])
    matrix = torch.from_numpy(np.exp(-np.abs(places[:, None] - places) / 30))
    assert spans(stretches(matrix)) == [(0, 2), (3, 5), (6, 8)]


def test_the_whole_network_is_no_stretch():
    assert stretches(planted([6], inside=0.9), threshold=0.6) == []
    assert stretches(torch.ones(5, 5)) == []  # threshold_of gives 1


@settings(max_examples=25)
@given(n=st.integers(2, 7), seed=st.integers(0, 999), threshold=st.floats(0.1, 0.9))
def test_the_cut_is_the_best_of_all(n, seed, threshold):
    """Against every way to cut the order into segments."""
    x = np.random.default_rng(seed).normal(size=(n, 2))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    matrix = x @ x.T

    def cost(cuts):
        edges = [0, *cuts, n]
        parts = [matrix[a:b, a:b] for a, b in itertools.pairwise(edges)]
        return sum(np.trace(p) - p.sum() / len(p) for p in parts) + (1 - threshold) * len(parts)

    subsets = [c for r in range(n) for c in itertools.combinations(range(1, n), r)]
    best = min(subsets, key=lambda c: (round(cost(c), 9), -len(c)))
    found = spans(stretches(torch.from_numpy(matrix), threshold=threshold, contrast=-2, boundary=-1))
    edges = [0, *best, n]
    whole = [(a, b - 1) for a, b in itertools.pairwise(edges) if b - a > 1]
    means = {s: (matrix[s[0] : s[1] + 1, s[0] : s[1] + 1].sum() - (s[1] - s[0] + 1)) for s in whole}
    length = {s: s[1] - s[0] + 1 for s in whole}
    assert found == [s for s in whole if means[s] / (length[s] * (length[s] - 1)) > threshold]


def test_threshold_is_halfway_to_one():
    assert threshold_of(planted([1] * 4, outside=0.4)) == pytest.approx(0.7)
    assert threshold_of(planted([1] * 4, outside=-0.4)) == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"values": torch.ones(2, 3)}, errors.BatchError, "square matrix"),
        ({"values": torch.full((2, 2), float("nan"))}, errors.BatchError, "finite"),
        ({"values": torch.tensor([[1.0, 0.5], [0.1, 1]])}, errors.BatchError, "symmetric"),
        ({"values": torch.eye(3), "threshold": 1.0}, errors.InvalidOption, "threshold"),
        ({"values": torch.eye(3), "shortest": 1}, errors.InvalidOption, "shortest"),
    ],
)
def test_bad_matrices(arguments, error, match):
    with pytest.raises(error, match=match):
        stretches(**arguments)


# --- models -----------------------------------------------------------------------------------


class Block(nn.Module):
    """Nearly the identity, or a new random view of what comes in."""

    def __init__(self, width, change):
        super().__init__()
        self.fc, self.change = nn.Linear(width, width), change

    def forward(self, x):
        return torch.sin(40 * self.fc(x)) if self.change else x + 0.01 * self.fc(x)


def model(changes=(True, False, False, False, True, True)):
    torch.manual_seed(1)
    return nn.Sequential(*(Block(16, c) for c in changes))


def samples():
    return torch.randn(128, 16, generator=torch.Generator().manual_seed(0))


def test_advice_names_the_ends_of_the_stretch():
    advice = advise(model(), samples())
    assert [(s.at, s.stop_grad) for s in advice[:2]] == [("3", False), ("0", True)]
    assert advice[0].stretch == ("0", "3")
    assert "the end of the stretch 0 … 3" in advice[0].reason
    assert "the start of the stretch" in advice[1].reason
    assert str(advice).startswith("1. 3, stop_grad=False: ")
    assert advice.score("3", False) == advice[0].score > 0
    assert advice.score("5", False) == 0


def test_suggestions_go_straight_into_rewrite():
    net = model()
    advice = advise(net, samples())
    assert len(advice) >= 2
    for suggestion in advice:
        aug = graphaug.rewrite(net, **suggestion, rate=0.3, example_inputs=samples())
        assert aug.plan.sites[0].request.target.path == suggestion.at
        assert aug.plan.sites[0].request.stop_grad is suggestion.stop_grad
        graphaug.verify(aug, samples()[:16])


@pytest.mark.parametrize("stop_grad", [False, True])
def test_rewrite_at_an_entry_of_the_advice(stop_grad):
    net = model()
    best = next(s for s in advise(net, samples()) if s.stop_grad == stop_grad)
    aug = graphaug.rewrite(net, at=best)
    assert aug.plan.sites[0].request.target.path == best.at
    assert aug.plan.sites[0].request.stop_grad is stop_grad
    assert f"advised: {best.reason}" in str(aug.plan)


def test_an_entry_for_training_without_stopped_gradients_does_not_stop_them():
    net = model()
    entry = next(s for s in advise(net, samples()) if not s.stop_grad)
    with pytest.raises(errors.InvalidOption, match="is advised for stop_grad=False"):
        graphaug.rewrite(net, at=entry, stop_grad=True)


def test_no_stretch_no_site():
    net = model([True] * 6)
    advice = advise(net, samples())
    assert len(advice) == 0
    assert str(advice).startswith("no stretch of co-adapted sites")


def test_sites_that_do_nothing_make_no_stretch():
    """Dropout in eval mode, a flatten: their CKA of 1 with what comes before is no co-adaptation."""
    changes = [layer for block in model([True] * 5) for layer in (block, nn.Dropout(0.5), nn.Flatten())]
    names = [str(i) for i in range(15)]
    advice = advise(nn.Sequential(*changes), samples(), names)
    assert advice.similarity.rows == tuple(names)  # compared all the same
    assert advice.sites == tuple(names[::3])
    assert len(advice) == 0
    net = nn.Sequential(*itertools.chain(*((block, nn.Identity()) for block in model())))
    advice = advise(net, samples(), names[:12])
    assert [(s.at, s.stop_grad) for s in advice[:2]] == [("6", False), ("0", True)]
    assert (advice.stretches[0].start, advice.stretches[0].end) == (0, 6)


@pytest.mark.long
def test_what_does_not_separate_is_not_suggested():
    """Of a stretch that ends within a residual block, the nearest site that can be rewritten is."""
    values = torch.full((8, 8), 0.1, dtype=torch.float64)
    values[2:6, 2:6] = 0.95
    values.fill_diagonal_(1)
    names = ("a", "b", "c.fc", "c", "d", "e.fc", "e", "f")
    found = advice_of(CKA(names, names, values, 100, "unbiased", "linear"), suggest={"a", "b", "c", "d", "e"})
    assert [(s.at, s.stop_grad) for s in found] == [("d", False), ("c", True)]
    assert found[0].stretch == ("c.fc", "e.fc")
    assert found[0].reason.startswith("nearest to the end of the stretch c.fc … e.fc")
    net = model()
    everything = advise(net, samples(), "**", threshold=0.3)
    assert len(everything) > 0
    for suggestion in everything:
        graphaug.rewrite(net, **suggestion, example_inputs=samples())


def test_what_can_be_read_only_once_is_read_whole():
    class Once:
        def __init__(self):
            self.parts = iter(samples().split(32))

        def __iter__(self):
            return self.parts

    assert advise(model(), Once()).similarity.samples == 128
    assert advise(model(), samples().split(32)).similarity.samples == 128


def test_a_network_that_does_nothing_has_no_advice():
    advice = advise(nn.Sequential(*(nn.Identity() for _ in range(4)), nn.Linear(16, 16)), samples())
    assert len(advice) == 0
    advice = advise(nn.Sequential(*(nn.Identity() for _ in range(4))), samples(), ["0", "1", "2", "3"])
    assert str(advice).startswith("no stretch of co-adapted sites: all are the same")


def vit():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2
    )


def transformer(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    return getattr(transformers, f"{kind}Model")(config)


STAGES = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
LAYERS = ["embeddings", *(f"encoder.layer.{i}" for i in range(3))]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (torchvision.models.resnet18, ["relu", *STAGES, "flatten", "fc"]),
        (vit, ["patch_embed", *(f"blocks.{i}" for i in range(4))]),
        (lambda: transformer("Bert"), LAYERS),
        (lambda: transformer("DebertaV2"), LAYERS),  # its layers return tuples
        (lambda: transformer("MPNet"), LAYERS),
        (model, list("012345")),
        (lambda: nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)), ["0", "1", "2"]),
    ],
)
@pytest.mark.long
def test_candidates(make, expected):
    net = make().eval()
    name = type(net).__name__
    if name in ("BertModel", "DebertaV2Model", "MPNetModel"):
        example = {"input_ids": torch.arange(24).view(3, 8), "attention_mask": torch.ones(3, 8).long()}
    else:
        example = (torch.randn(3, 3, 16, 16) if name != "Sequential" else samples()[:3],)
    assert candidates(net, example) == expected


class Added(nn.Module):
    """The forward adds what its layers give to what came in: the layers are bypassed, the additions are not."""

    def __init__(self):
        super().__init__()
        self.stem, self.layers = nn.Linear(16, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.relu())


@pytest.mark.long
def test_a_forward_that_adds_by_itself_is_compared_at_its_additions():
    assert candidates(Added(), (samples()[:3],)) == ["stem", "add", "add_1", "add_2", "head"]
    for suggestion in advise(Added(), samples()):
        graphaug.rewrite(Added(), suggestion)


def test_too_few_sites():
    with pytest.raises(errors.SiteNotFound, match="3 sites or more"):
        advise(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(16, 4))


def test_a_generator_is_read_once():
    net, x = model(), samples()
    expected = cka(net, x, [str(i) for i in range(6)], batch_size=32).values
    found = advise(net, (part for part in x.split(32))).similarity
    assert found.samples == 128
    torch.testing.assert_close(found.values, expected)


def test_a_suggestion_is_a_mapping():
    suggestion = Suggestion("layer3", True, "why", 0.5, ("layer2", "layer3"))
    assert dict(suggestion) == {"at": "layer3", "stop_grad": True}
    with pytest.raises(KeyError):
        suggestion["reason"]
    assert len(suggestion) == 2
