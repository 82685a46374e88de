"""The probes against scikit-learn used directly, and against hand-made features."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from graphaug.errors import BatchError, DataError, InvalidOption, TrainingDiverged
from graphaug.vision.probes import evaluate
from graphaug.vision.probes.evaluate import (
    FewLabelResult,
    few_label_probe,
    knn_accuracy,
    label_share_probe,
    linear_probe,
)


def blobs(n=300, d=6, classes=3, spread=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    scale = torch.logspace(-2, 2, d)  # features of very different size
    return (centres[labels] + spread * torch.randn(n, d, generator=generator)) * scale, labels


def test_linear_probe_is_standardised_logistic_regression():
    (train_x, train_y), (test_x, test_y) = blobs(), blobs(seed=1)
    scaler = StandardScaler().fit(train_x.double().numpy())
    model = LogisticRegression(C=0.3, max_iter=1000).fit(
        scaler.transform(train_x.double().numpy()), train_y.numpy()
    )
    expected = model.score(scaler.transform(test_x.double().numpy()), test_y.numpy())
    assert linear_probe(train_x, train_y, test_x, test_y, c=0.3) == expected
    assert 0.5 < expected < 1


def test_a_probe_of_noise_is_at_chance():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1000, 5, generator=generator), torch.arange(1000) % 4
    assert linear_probe(x[:500], y[:500], x[500:], y[500:]) == pytest.approx(0.25, abs=0.08)


def test_constant_features_do_not_break_the_probe():
    x, y = torch.zeros(20, 3), torch.arange(20) % 2
    assert linear_probe(x, y, x, y) == 0.5


def test_few_labels_uses_exactly_k_of_each_class(monkeypatch):
    seen = []

    def spy(train_x, train_y, test_x, test_y, *, c):
        seen.append((train_x, train_y))
        return 0.5

    monkeypatch.setattr("graphaug.vision.probes.evaluate.linear_probe", spy)
    x, y = blobs()
    result = few_label_probe(x, y, x, y, labels_per_class=4, draws=5)
    assert len(result.accuracies) == 5
    for _, labels in seen:
        assert labels.bincount().tolist() == [4, 4, 4]
    assert len({rows.numpy().tobytes() for rows, _ in seen}) == 5


def test_few_label_draws_depend_on_the_seed_alone():
    (x, y), (test_x, test_y) = blobs(spread=3), blobs(spread=3, seed=1)
    first = few_label_probe(x, y, test_x, test_y, labels_per_class=2)
    torch.manual_seed(77)
    assert few_label_probe(x, y, test_x, test_y, labels_per_class=2) == first
    assert few_label_probe(x, y, test_x, test_y, labels_per_class=2, seed=1) != first
    assert len(set(first.accuracies)) > 1


def test_a_share_of_the_labels_is_drawn_from_every_class(monkeypatch):
    x = torch.randn(230, 3, generator=torch.Generator().manual_seed(0))
    y = torch.cat([torch.zeros(200), torch.ones(20), torch.full((10,), 2.0)]).long()
    seen = []

    def spy(train_x, train_y, test_x, test_y, c):
        assert all((x == row).all(1).any() for row in train_x)
        seen.append((train_y.bincount().tolist(), train_x))
        return 0.5

    monkeypatch.setattr(evaluate, "linear_probe", spy)
    for share, counts in [(0.01, [2, 1, 1]), (0.1, [20, 2, 1]), (1.0, [200, 20, 10])]:
        seen.clear()
        result = label_share_probe(x, y, x, y, share=share, draws=3)
        assert [found for found, _ in seen] == [counts] * 3
        assert result.mean == 0.5
    assert not torch.equal(seen[0][1], seen[1][1])
    with pytest.raises(InvalidOption, match=r"share is in \(0, 1\]"):
        label_share_probe(x, y, x, y, share=1.5)


def test_few_label_result_summaries():
    result = FewLabelResult(5, (0.5, 0.7, 0.9))
    assert result.mean == pytest.approx(0.7)
    assert result.std == pytest.approx(0.2)
    assert math.isnan(FewLabelResult(5, (0.5,)).std)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_is_the_weighted_vote_of_scikit_learn(k):
    (train_x, train_y), (test_x, test_y) = blobs(), blobs(n=1500, seed=1)

    def weights(distances):  # squared distance of unit vectors is 2 - 2·cosine
        return np.exp((1 - distances**2 / 2) / 0.1)

    unit = [torch.nn.functional.normalize(x.double(), dim=1).numpy() for x in (train_x, test_x)]
    expected = (
        KNeighborsClassifier(k, weights=weights).fit(unit[0], train_y.numpy()).score(unit[1], test_y.numpy())
    )
    accuracy = knn_accuracy(train_x.double(), train_y, test_x.double(), test_y, k=k)
    assert accuracy == pytest.approx(expected, abs=1e-3)


def test_knn_takes_all_rows_when_there_are_fewer_than_k():
    x, y = torch.eye(4).repeat(2, 1), torch.arange(8) % 4
    assert knn_accuracy(x, y, x, y, k=200, temperature=0.01) == 1.0


def test_bad_input():
    x, y = blobs(n=12)
    with pytest.raises(BatchError, match="training features"):
        linear_probe(x, y[:5], x, y)
    with pytest.raises(BatchError, match="test features"):
        knn_accuracy(x, y, x[:0], y[:0])
    with pytest.raises(DataError, match="at least two classes"):
        linear_probe(x, torch.zeros_like(y), x, y)
    with pytest.raises(TrainingDiverged, match=r"not all finite.*lower learning rate"):
        linear_probe(x.clone().fill_(math.nan), y, x, y)
    with pytest.raises(DataError, match="only 4 images"):
        few_label_probe(x, y, x, y, labels_per_class=5)
    with pytest.raises(InvalidOption, match="at least 1"):
        few_label_probe(x, y, x, y, draws=0)
    with pytest.raises(InvalidOption, match="k must be"):
        knn_accuracy(x, y, x, y, k=0)
