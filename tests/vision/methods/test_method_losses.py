"""The loss of every method, against the formula of its paper, or against lightly's code where the loss is ours."""

import copy
import math

import pytest
import torch
from torch import nn

import graphaug as ga
from graphaug.contrastive.losses import nt_xent, supcon
from graphaug.errors import BatchError, ConfigError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.methods.table import METHODS

ROWS, WIDTH = 6, 4


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, WIDTH))


def built(name, net, **settings):
    """The method as a run would make it, of small embeddings."""
    small = {} if name == "supervised" else {"projection": WIDTH, "hidden": 8}
    config = PretrainConfig(method=name, batch_size=ROWS, **small, **settings)
    return METHODS[name](net, **{n: getattr(config, n) for n in METHODS[name].settings}).train()


def images(views=2):
    return torch.randn(views * ROWS, 3, 2, 2)


def cosine(a, b):
    return (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())


def test_simsiam_is_the_negative_cosine_to_a_stopped_target():
    net, x = network(), images()
    method = built("simsiam", net)
    other, predictor = copy.deepcopy(net), copy.deepcopy(method.predictor)
    found = method(net, x)["loss"]
    found.backward()
    z = other(x)
    p, (z1, z2) = predictor(z), z.detach().split(ROWS)
    expected = -(cosine(p[:ROWS], z2).mean() + cosine(p[ROWS:], z1).mean()) / 2
    expected.backward()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert method.predictor.layers[0].out_features == 1  # a quarter of 4


def test_byol_is_the_squared_distance_of_predictions_to_the_teacher():
    net, x = network(), images()
    method = built("byol", net)
    with torch.no_grad():
        net[1].weight.add_(0.3)  # the teacher is another network by now
    teacher, other, predictor = (copy.deepcopy(m) for m in (method.follower.network, net, method.predictor))
    assert not torch.equal(teacher[1].weight, net[1].weight)
    found = method(net, x)["loss"]
    found.backward()
    unit = torch.nn.functional.normalize
    p, t = unit(predictor(other(x))), unit(teacher(x)).detach()
    expected = (p[:ROWS] - t[ROWS:]).square().sum(1).mean() + (p[ROWS:] - t[:ROWS]).square().sum(1).mean()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert all(p.grad is None for p in method.follower.parameters())


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_moco_is_lightlys_loss_with_the_same_queue(temperature):
    from lightly.loss import NTXentLoss

    net, x = network(), images()
    method = built("moco", net, temperature=temperature, queue=10)
    theirs = NTXentLoss(temperature, memory_bank_size=(10, WIDTH))
    theirs.memory_bank.bank = method.queue.clone()
    key = copy.deepcopy(method.follower.network)(x[ROWS:]).detach()
    query = copy.deepcopy(net)(x[:ROWS])
    torch.testing.assert_close(method(net, x)["loss"], theirs(query, key))
    assert torch.allclose(method.queue.norm(dim=1), torch.ones(10))


def test_the_queue_holds_the_last_keys_whatever_its_length():
    """Ten places and six keys a step: what comes goes around, and the oldest leave."""
    net = network()
    method = built("moco", net, queue=10)
    former, keys = method.queue.clone(), []
    for step in range(4):
        x = images()
        keys += list(torch.nn.functional.normalize(copy.deepcopy(method.follower.network)(x[ROWS:])))
        method(net, x)["loss"].backward()
        assert int(method.oldest) == (step + 1) * ROWS % 10
        if step == 0:
            assert torch.equal(method.queue[ROWS:], former[ROWS:])
    held = {tuple(round(v, 5) for v in row) for row in method.queue.tolist()}
    assert held == {tuple(round(v, 5) for v in key.tolist()) for key in keys[-10:]}
    method.eval()
    before = method.queue.clone()
    method(net, images())
    assert torch.equal(method.queue, before)


@pytest.mark.parametrize("weight", [0.005, 0.3])
def test_barlow_twins_is_the_papers_sum_over_the_correlations(weight):
    net, x = network(), images()
    z = copy.deepcopy(net)(x).detach().double()
    found = built("barlow", net, redundancy=weight)(net, x)["loss"].detach()
    a, b = ((v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt() for v in (z[:ROWS], z[ROWS:]))
    expected = 0.0
    for i in range(WIDTH):
        for j in range(WIDTH):
            c = float((a[:, i] * b[:, j]).sum()) / ROWS
            expected += (1 - c) ** 2 if i == j else weight * c**2
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [(), (2.0, 3.0, 5.0)])
def test_vicreg_is_its_three_terms(weights):
    net, x = network(), images()
    z = copy.deepcopy(net)(x).detach().double()
    found = built("vicreg", net, vicreg_weights=weights)(net, x)["loss"].detach()
    a, b = z[:ROWS], z[ROWS:]
    invariance = float(((a - b) ** 2).sum()) / (ROWS * WIDTH)
    variance = covariance = 0.0
    for part in (a, b):
        for i in range(WIDTH):
            spread = float(((part[:, i] - part[:, i].mean()) ** 2).sum()) / (ROWS - 1)
            variance += max(0.0, 1 - math.sqrt(spread + 1e-4)) / WIDTH / 2
            for j in range(WIDTH):
                if i != j:
                    both = (part[:, i] - part[:, i].mean()) * (part[:, j] - part[:, j].mean())
                    covariance += (float(both.sum()) / (ROWS - 1)) ** 2 / WIDTH
    first, second, third = weights or (25.0, 25.0, 1.0)
    expected = first * invariance + second * variance + third * covariance
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", ["mean", "supcontrast"])
def test_supcon_is_the_papers_double_sum(scale):
    z = torch.randn(2 * ROWS, WIDTH, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    unit, both = z / z.norm(dim=1, keepdim=True), labels.tolist() * 2
    total = 0.0
    for i in range(2 * ROWS):
        others = [math.exp(float(unit[i] @ unit[a]) / 0.2) for a in range(2 * ROWS) if a != i]
        positives = [p for p in range(2 * ROWS) if p != i and both[p] == both[i]]
        total -= sum(float(unit[i] @ unit[p]) / 0.2 - math.log(sum(others)) for p in positives) / len(
            positives
        )
    expected = total / (2 * ROWS) * (0.2 / 0.07 if scale == "supcontrast" else 1)
    assert float(supcon(*z.chunk(2), labels, 0.2, scale=scale)) == pytest.approx(expected, rel=1e-9)


def test_supcon_with_a_class_for_every_sample_is_nt_xent():
    z1, z2 = torch.randn(2, ROWS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(supcon(z1, z2, torch.arange(ROWS), 0.3), nt_xent(z1, z2, 0.3))


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.int64), torch.zeros(6)])
def test_supcon_wants_an_integer_a_row(labels):
    with pytest.raises(BatchError, match="labels are 6 integers, one for each row"):
        supcon(*torch.randn(2, ROWS, WIDTH), labels)


def test_the_settings_of_supcon_reach_it():
    net, x, labels = network(), images(), torch.tensor([0, 1, 0, 2, 1, 0])
    z1, z2 = copy.deepcopy(net)(x).chunk(2)
    method = built("supcon", net, temperature=0.2, loss_scale="supcontrast")
    torch.testing.assert_close(method(net, x, labels)["loss"], supcon(z1, z2, labels, 0.2) * 0.2 / 0.07)


def test_supervised_is_cross_entropy_with_its_accuracy():
    net, x, labels = network(), images(1), torch.tensor([0, 1, 0, 2, 1, 3])
    scores = copy.deepcopy(net)(x).detach()
    found = built("supervised", net)(net, x, labels)
    chances = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = -sum(math.log(float(chances[i, labels[i]])) for i in range(ROWS)) / ROWS
    assert float(found["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(float((scores.argmax(1) == labels).sum()) / ROWS)


@pytest.mark.parametrize("subset", [0.5, 1.0, 0.05])
def test_supervised_mixes_the_labels_as_a_site_mixed_the_rows(subset):
    """At a subset of a twentieth no row of six is mixed, and the loss is the plain one."""
    plain = network()
    net = ga.rewrite(plain, "1", transform=ga.Mix(alpha=0.7), subset=subset, example_inputs=images(1)).train()
    x, labels = images(1), torch.tensor([0, 1, 0, 2, 1, 3])
    scores = []
    handle = plain[4].register_forward_hook(lambda *args: scores.append(args[2].detach()))
    found = float(built("supervised", net)(net, x, labels)["loss"].detach())
    handle.remove()
    drawn = net.drawn["1"]
    chosen = drawn.rows.nonzero()[:, 0].tolist()
    assert len(chosen) == round(subset * ROWS)
    chances = scores[0].softmax(1)
    total = 0.0
    for i in range(ROWS):
        own, partner = 1.0, i
        if i in chosen:
            place = drawn.index.tolist().index(i)
            own = float(drawn.draws.lam[place])
            partner = int(drawn.index[int(drawn.draws.partners[place])])
        total -= own * math.log(float(chances[i, labels[i]]))
        total -= (1 - own) * math.log(float(chances[i, labels[partner]]))
    assert found == pytest.approx(total / ROWS, rel=1e-5)


def test_heads_are_lightlys_of_the_papers_size():
    classifier = nn.Linear(512, 1000)
    sizes = {
        "simsiam": [(512, 2048), (2048, 2048), (2048, 2048)],
        "byol": [(512, 4096), (4096, 256)],
        "moco": [(512, 2048), (2048, 128)],
        "barlow": [(512, 8192), (8192, 8192), (8192, 8192)],
        "vicreg": [(512, 8192), (8192, 8192), (8192, 8192)],
        "simclr": [(512, 512), (512, 128)],
        "supcon": [(512, 512), (512, 128)],
        "supervised": [(512, 10)],
    }
    assert sizes.keys() == METHODS.keys()
    for name, expected in sizes.items():
        with torch.device("meta"):
            head = PretrainConfig(method=name).head(classifier, 10)
        layers = [m for m in head.modules() if isinstance(m, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == expected, name


def test_a_convolution_as_classifier_is_refused_where_a_head_has_none():
    classifier = nn.Conv2d(512, 1000, 1)
    with pytest.raises(ConfigError, match="the model's classifier is a Conv2d, and BYOLProjectionHead"):
        PretrainConfig(method="byol").head(classifier, 10)
    assert isinstance(PretrainConfig(method="supervised").head(classifier, 10), nn.Conv2d)
