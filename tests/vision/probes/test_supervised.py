"""Training with labels: what is trained and what is not, the protocol's schedule, and what is reported."""

from dataclasses import replace

import pytest
import resumed
import torch
from torch import nn

from graphaug.errors import DataError
from graphaug.vision.data.images import ImageSet
from graphaug.vision.models import build_model
from graphaug.vision.probes import supervised
from graphaug.vision.probes.supervised import fine_tune, linear_protocol


@pytest.fixture(scope="module")
def images():
    return resumed.images()


def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("resnet18-cifar:4")


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_the_linear_protocol_trains_nothing_of_the_encoder(images):
    model = encoder()
    before, classifier = state(model), model.fc
    result = linear_protocol(model, images, epochs=8, batch_size=16, lr=0.5)
    assert changed(model, before) == set()  # nor do its batch statistics move
    assert model.fc is classifier
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert result.accuracy == 1.0  # dark and bright
    assert result.epochs == 8


def test_fine_tuning_trains_all_but_the_old_classifier(images):
    model = encoder()
    before = state(model)
    fine_tune(model, images, epochs=1, batch_size=16)
    kept = {"fc.weight", "fc.bias"}
    assert changed(model, before) == before.keys() - kept


@pytest.mark.parametrize(
    ("images_", "batch", "sizes"),
    [
        (33, 16, [16, 17]),
        (34, 16, [16, 16, 2]),
        (32, 16, [16, 16]),
        (17, 16, [17]),
        (9, 16, [9]),
        (3, 1, [1] * 3),
    ],
)
def test_every_image_is_seen_once_and_none_alone(images_, batch, sizes):
    part = ImageSet(torch.arange(images_).view(-1, 1, 1, 1).to(torch.uint8), torch.arange(images_))
    feed = supervised.LabelledFeed(part, batch, torch.Generator().manual_seed(0), torch.device("cpu"))
    feed.start_epoch()
    seen = [labels for step in range(feed.steps) for _, _, labels in feed.batches(step)]
    assert [len(labels) for labels in seen] == sizes
    assert sorted(torch.cat(seen).tolist()) == list(range(images_))
    for step in range(feed.steps):
        for pixels, uniforms, labels in feed.batches(step):
            assert torch.equal(pixels.flatten().long(), labels)
            assert len(uniforms) == len(labels)


def test_fine_tuning_takes_an_image_that_is_left_over(images):
    model = encoder()
    assert len(images.train) % 47 == 1
    fine_tune(model, images, epochs=1, batch_size=47)


def test_the_protocols_learning_rate_is_supcontrasts(images, monkeypatch):
    """main_linear.py: 0.2 to the number of the decay epochs 60, 75, 90 that the epoch, from 1, is behind."""
    seen = {}

    class Spy:
        def __init__(self, fabric, objective, feed, optimizer, learning_rate, *, epochs):
            seen["rate"] = learning_rate
            group = optimizer.param_groups[0]
            seen["options"] = (epochs, group["momentum"], group["weight_decay"], len(group["params"]))

        def fit(self, after_line):
            after_line({})

    monkeypatch.setattr(supervised, "Engine", Spy)
    linear_protocol(encoder(), images)
    for epoch, expected in [(1, 5), (60, 5), (61, 1), (75, 1), (76, 0.2), (90, 0.2), (91, 0.04), (100, 0.04)]:
        for within in (0, 0.5, 0.99):
            assert seen["rate"](epoch - 1 + within) == pytest.approx(expected), (epoch, within)
    assert seen["options"] == (100, 0.9, 0, 2)


def test_the_last_epoch_is_reported_and_the_best_beside_it(images, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(supervised.Classification, "accuracy", lambda *_: next(accuracies))
    found = linear_protocol(encoder(), images, epochs=3, batch_size=24).to_dict()
    assert found == {"last_epoch": 0.7, "best_over_epochs": 0.9, "best_epoch": 2, "epochs": 3}


def test_one_seed_gives_one_result(images):
    runs = [encoder() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(runs, (0, 0, 1), strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(17 + number)  # the caller's state neither enters nor moves
            before = torch.get_rng_state()
            fine_tune(model, images, epochs=1, batch_size=24, seed=seed)
            assert torch.equal(torch.get_rng_state(), before)
    first, second, other = (nn.utils.parameters_to_vector(model.parameters()) for model in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_images_without_labels_are_refused(images):
    with pytest.raises(DataError, match="at least two classes"):
        linear_protocol(encoder(), replace(images, classes=("all",)))
