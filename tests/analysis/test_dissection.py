"""The dissection against a hand-written forward hook under the same draw."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphaug
from graphaug import errors
from graphaug.analysis import dissect
from graphaug.augment.deep_augment import DeepAugment

SITES = ["0", "1", "2", "3", "4"]


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 6)
    )
    model(torch.randn(32, 8))  # running statistics of their own
    return model.train()


def batch(rows=10):
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(3))


def by_hand(model, x, at, augmentation, loss, seed):
    """Values, their gradients and the parameters' gradients, with hooks; ``augmentation`` None runs it plain."""
    values, handles = {}, []
    drawn = {}

    def keep(name):
        def hook(_, __, out):
            out.retain_grad()
            values[name] = out

        return hook

    def augment(_, __, h):
        rows = augmentation.draw_rows(len(h), h.device)
        noise = augmentation.draw_noise(h)
        drawn.update(rows=rows, noise=noise)
        changed = h * noise
        return torch.where(rows[:, None], changed.detach() if augmentation.stop_grad else changed, h)

    if augmentation is not None:
        handles.append(model.get_submodule(at).register_forward_hook(augment))
    handles += [model.get_submodule(name).register_forward_hook(keep(name)) for name in SITES]
    was = model.training
    model.eval()
    torch.manual_seed(seed)
    loss(model(x)).backward()
    model.train(was)
    for handle in handles:
        handle.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return (
        {n: v.detach() for n, v in values.items()},
        {n: v.grad for n, v in values.items()},
        gradients,
        drawn,
    )


@pytest.mark.parametrize("stop_grad", [False, True])
def test_equals_hooks_under_the_same_draw(stop_grad):
    model, x = network(), batch()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    aug = graphaug.rewrite(model, at="2", rate=0.4, stop_grad=stop_grad)

    def loss(out):
        return out.square().sum()

    found = dissect(aug, x, SITES, loss=loss, seed=7)
    same = DeepAugment(0.4, 0.5, stop_grad)
    values, gradients, parameters, drawn = by_hand(model, x, "2", same, loss, 7)
    plain, plain_gradients, plain_parameters, _ = by_hand(model, x, "2", None, loss, 7)
    rows = drawn["rows"]
    assert (found.rows, found.batch) == (int(rows.sum()), 10) == (5, 10)
    assert found.dropped == pytest.approx(float((drawn["noise"][rows] == 0).float().mean()))
    for effect, name in zip(found.effects, SITES, strict=True):
        cosine = F.cosine_similarity(values[name], plain[name])[rows]
        assert effect.cosine == pytest.approx(float(cosine.mean()), abs=1e-5)
        assert effect.gradient == pytest.approx(float(gradients[name][rows].norm()), abs=1e-5)
        assert effect.plain_gradient == pytest.approx(float(plain_gradients[name][rows].norm()), abs=1e-5)
        assert effect.after_cut is (name in "234")

    def norm(gradients, names):
        return float(torch.cat([gradients[n].flatten() for n in names]).norm())

    below = ["0.weight", "0.bias", "1.weight", "1.bias"]
    above = ["3.weight", "3.bias", "4.weight", "4.bias"]
    assert found.gradient_below == pytest.approx(norm(parameters, below), rel=1e-5)
    assert found.gradient_above == pytest.approx(norm(parameters, above), rel=1e-5)
    assert found.plain_below == pytest.approx(norm(plain_parameters, below), rel=1e-5)
    assert found.plain_above == pytest.approx(norm(plain_parameters, above), rel=1e-5)
    if stop_grad:  # nothing of the augmented rows goes below the cut
        assert found.effects[0].gradient == found.effects[1].gradient == 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(m.training for m in aug.modules())


@pytest.mark.long
def test_recognised_counts_rows_nearest_to_themselves():
    model, x = network(), batch(40)
    gentle = dissect(graphaug.rewrite(model, at="3", rate=0.0), x)
    harsh = dissect(graphaug.rewrite(model, at="3", rate=1.0), x)
    assert gentle.effects[-1].recognised == 1
    assert gentle.effects[-1].cosine > harsh.effects[-1].cosine
    assert harsh.effects[-1].recognised < 0.5
    assert harsh.verdict == "destroying"
    assert harsh.dropped == 1


@pytest.mark.long
def test_verdicts():
    model, x = network(), batch(20)
    assert dissect(graphaug.rewrite(model, at="0", rate=0.0), x).verdict == "too weak"
    text = str(dissect(graphaug.rewrite(model, at="2", rate=0.3, stop_grad=True), x))
    assert "10 of 20 rows augmented" in text
    assert "gradient norm of the parameters before the cut" in text


@pytest.mark.long
def test_a_dead_network_and_one_that_diverged_are_not_judged():
    dead = network()
    for p in dead.parameters():
        p.data.zero_()
    assert "all 0" in dissect(graphaug.rewrite(dead, at="3", rate=0.5), batch(20)).verdict
    lost = network()
    next(lost.parameters()).data.fill_(torch.nan)
    with pytest.raises(errors.DataError, match="activations of '0' are not finite"):
        dissect(graphaug.rewrite(lost, at="3", rate=0.5), batch(20))


def test_sites_before_the_cut_do_not_judge_it():
    aug = graphaug.rewrite(network(), at="3", rate=1.0)
    found = dissect(aug, batch(20), ["0", "1", "2"])
    assert [e.after_cut for e in found.effects] == [False] * 3
    assert found.verdict.startswith("not seen")
    assert dissect(aug, batch(20), ["0", "3", "4"]).verdict == "destroying"
    # a branch beside the cut, computed later than it
    branches = dissect(
        graphaug.rewrite(Branches(), at="a", rate=1.0, allow_bypass=True), batch(20), ["a", "b"]
    )
    assert [e.after_cut for e in branches.effects] == [True, False]
    assert branches.verdict == "destroying"


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        a = self.a(x)
        return self.c(a + self.b(x))


class WithLoss(nn.Module):
    """Gives its loss first, as transformers' models do that are given labels."""

    def __init__(self, alone=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.alone = nn.Linear(8, 8), nn.Linear(8, 3), alone

    def forward(self, input, labels):
        z = self.head(self.body(input))
        loss = F.cross_entropy(z, labels)
        return loss if self.alone else {"loss": loss, "logits": z}


@pytest.mark.parametrize("alone", [False, True])
def test_a_model_that_gives_its_loss_first_and_batches_as_dicts(alone):
    x = {"input": batch(12), "labels": torch.arange(12) % 3, "ids": torch.arange(12)}
    given = {k: x[k] for k in ("input", "labels")}
    aug = graphaug.rewrite(WithLoss(alone), at="body", rate=0.5, example_inputs=given)
    found = dissect(aug, x, ["body", "head"])
    assert [e.site for e in found.effects] == ["body", "head"]
    assert found.plain_below > 0
    by_loss = dissect(aug, given, ["body", "head"], loss=lambda out: out if alone else out["loss"])
    assert (found == by_loss) is alone  # by default a direction of the logits, if there are any


def test_of_a_convolutional_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    x = torch.randn(8, 3, 8, 8)
    aug = graphaug.rewrite(model, at="2", rate=0.5, granularity="channel", stop_grad=True)
    found = dissect(aug, x, ["0", "2", "3"], seed=3)
    plain = model.eval()(x)
    assert [e.after_cut for e in found.effects] == [False, True, True]
    assert found.effects[0].gradient == 0 < found.effects[0].plain_gradient
    assert found.gradient_below > 0  # from the rows that are not augmented
    assert 0 < found.dropped < 1
    assert found.dropped * 4 * 8 == pytest.approx(round(found.dropped * 4 * 8))  # whole channels of 4 rows
    assert model(x).equal(plain)


@pytest.mark.long
def test_the_same_seed_gives_the_same_table_and_leaves_the_generator():
    aug = graphaug.rewrite(network(), at="2")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = dissect(aug, batch(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert dissect(aug, batch(), seed=1) == first
    assert dissect(aug, batch(), seed=2) != first


def test_frozen_parts_are_seen_and_stay_frozen():
    model = network()
    aug = graphaug.rewrite(model, at="2", freeze="before")
    found = dissect(aug, batch())
    assert found.plain_below > 0
    assert not model[0].weight.requires_grad


def test_several_sites():
    aug = graphaug.rewrite(network(), at=["0", "3"], rate=0.5, stop_grad=True)
    found = dissect(aug, batch(), SITES)
    assert found.rows >= 5  # of either site
    assert found.effects[0].after_cut


@pytest.mark.parametrize(
    ("make", "x", "error", "match"),
    [
        (network, batch(), errors.NotRewritten, "not a Sequential"),
        (lambda: graphaug.rewrite(network(), at="2"), batch(3), errors.BatchError, "4 or more"),
        (lambda: graphaug.rewrite(network(), at="2", subset=0.0), batch(), errors.BatchError, "no row"),
        (lambda: graphaug.rewrite(network(), at="2"), 3, errors.DataError, "a batch is an int"),
    ],
)
def test_bad_input(make, x, error, match):
    with pytest.raises(error, match=match):
        dissect(make(), x)
