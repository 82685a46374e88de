"""The network that follows: its moving average in closed form, its own statistics, and no augmentation in it."""

import copy
import math

import pytest
import torch
from torch import nn

import graphaug as ga
from graphaug.surgery.module import AugmentedModule
from graphaug.vision.methods.teacher import Teacher, momentum_at


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_weights_follow_as_the_average_in_closed_form(momentum):
    """After n steps: m^n of the first weights, and (1-m)·m^(n-k) of those behind step k."""
    net = network()
    teacher = Teacher(net)
    seen = [p.detach().double().clone() for p in net.parameters()]
    expected = [momentum**5 * p for p in seen]
    for step in range(1, 6):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        for total, p in zip(expected, net.parameters(), strict=True):
            total += (1 - momentum) * momentum ** (5 - step) * p.detach().double()
        teacher.follow(net, momentum)
    for own, average in zip(teacher.network.parameters(), expected, strict=True):
        torch.testing.assert_close(own.double(), average, rtol=1e-5, atol=1e-6)


def test_the_cosine_is_byols_and_ends_at_one():
    for k in range(11):
        tau = 1 - (1 - 0.99) * (math.cos(math.pi * k / 10) + 1) / 2
        assert momentum_at(k / 10, 0.99, "cosine") == pytest.approx(tau, abs=1e-15)
        assert momentum_at(k / 10, 0.99, "constant") == 0.99
    assert momentum_at(0, 0.99, "cosine") == pytest.approx(0.99)
    assert momentum_at(1, 0.99, "cosine") == 1


def test_its_batch_statistics_are_its_own():
    net = network().train()
    teacher = Teacher(net).train()
    x, other = torch.randn(16, 4), torch.randn(16, 4) + 5
    net(other)
    teacher(x)
    with torch.no_grad():
        hidden = net[0](x)  # the weights are still the same
    torch.testing.assert_close(teacher.network[1].running_mean, 0.1 * hidden.mean(0))
    before = teacher.network[1].running_mean.clone()
    teacher.follow(net, 0.5)
    assert torch.equal(teacher.network[1].running_mean, before)
    assert int(teacher.network[1].num_batches_tracked) == 1


@pytest.mark.parametrize("freeze", [None, "before"])
def test_it_has_no_augmentation_and_no_gradient(freeze):
    plain = network()
    x = torch.randn(16, 4)
    aug = ga.rewrite(plain, "0", rate=1.0, subset=1.0, freeze=freeze, example_inputs=x).train()
    wanted = [p.requires_grad for p in aug.parameters()]
    teacher = Teacher(aug).train()
    assert not any(isinstance(m, AugmentedModule) for m in teacher.modules())
    assert not any(type(m).__module__.startswith("graphaug.augment") for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [p.requires_grad for p in aug.parameters()] == wanted  # stripping the copy thaws nothing
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in plain.parameters())
    found = teacher(x)
    torch.testing.assert_close(found, copy.deepcopy(plain).train()(x).detach())
    assert not found.requires_grad
    assert (aug(x).std(0) < 1e-3).all()  # all of the trained one's rows were dropped
    teacher.follow(aug, 0.9)  # names of both are the same


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.long
def test_augmented_on_request_it_draws_as_the_network_does(backward):
    """A sparse step has nothing to skip in it: of the same rows and draws both give the same."""
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(16, 4)
    options = {"rate": 0.5, "subset": 0.5, "stop_grad": True, "example_inputs": x}
    teacher = Teacher(ga.rewrite(plain, "0", backward=backward, **options), augment=True).train()
    torch.manual_seed(1)
    found = teacher(x)
    torch.manual_seed(1)
    expected = ga.rewrite(plain, "0", backward="dense", **options).train()(x)
    assert torch.equal(found, expected.detach())
    assert not torch.allclose(found, plain(x).detach())
    assert teacher.network.drawn["0"].rows.sum() == 8
