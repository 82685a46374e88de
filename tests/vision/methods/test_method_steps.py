"""Steps of every method: over two processes as one with the whole batch, and compiled as one graph."""

import copy

import method_processes
import pytest
import torch
from torch import nn

import graphaug as ga
from graphaug.vision.methods.supervised import Supervised
from graphaug.vision.methods.table import METHODS


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.long  # two processes
def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    """Losses, weights, the teacher and the queue; correlations, classes and keys are of both processes."""
    torch.multiprocessing.spawn(method_processes.run, (str(tmp_path),), nprocs=2)
    for name in method_processes.METHOD_NAMES:
        losses, state = method_processes.train(name, slice(None), False)
        first, second = (torch.load(tmp_path / f"{name}_{rank}.pt") for rank in (0, 1))
        for step, expected in enumerate(losses):
            assert (first[0][step] + second[0][step]) / 2 == pytest.approx(expected, rel=1e-4), name
        assert len(set(losses)) == len(losses)
        for key, expected in state.items():
            for _, found in (first, second):
                torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


def steps(step, forward):
    """Three steps of a method; losses, and everything that a checkpoint would hold."""
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], 0.05)
    losses = []
    for number in range(3):
        torch.manual_seed(number)
        x = torch.randn(step.method.views * method_processes.PAIRS, method_processes.WIDTH)
        optimizer.zero_grad()
        loss = forward(x, method_processes.LABELS)
        loss.backward()
        optimizer.step()
        step.method.after_step(step.network, number / 3)
        losses.append(float(loss.detach()))
    return losses, step.state_dict()


@pytest.mark.long  # ten seconds each
@pytest.mark.parametrize("name", [n for n in METHODS if n != "supervised"])
def test_a_compiled_step_is_one_graph_and_the_same(name):
    step = method_processes.Step(name).train()
    compiled = torch.compile(copy.deepcopy(step), fullgraph=True, backend="aot_eager")
    losses, state = steps(step, step)
    found, held = steps(compiled._orig_mod, compiled)
    assert found == losses
    for key, expected in state.items():
        assert torch.equal(held[key], expected), key


@pytest.mark.long  # ten seconds
def test_a_compiled_supervised_step_mixes_the_labels():
    class Step(nn.Module):
        def __init__(self, net, method):
            super().__init__()
            self.network, self.method = net, method

        def forward(self, x, labels):
            return self.method(self.network, x, labels)["loss"]

    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    example = torch.randn(4, 6)
    net = ga.rewrite(plain, "1", transform=ga.Mix(lam=0.7), subset=1.0, example_inputs=example)
    step = Step(net, Supervised(net)).train()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 6)
    found = float(compiled(x, method_processes.LABELS).detach())
    drawn = net.drawn["1"].draws
    with torch.no_grad():
        h = plain[1](plain[0](x))
        mixed = 0.7 * h + 0.3 * h[drawn.partners]
        likelihood = plain[2](mixed).log_softmax(1)
    labels = method_processes.LABELS.tolist()
    partners = [labels[p] for p in drawn.partners.tolist()]
    total = sum(
        0.7 * float(likelihood[i, a]) + 0.3 * float(likelihood[i, b])
        for i, (a, b) in enumerate(zip(labels, partners, strict=True))
    )
    assert found == pytest.approx(-total / 8, rel=1e-5)
