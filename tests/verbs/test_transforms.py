"""Transforms at sites. Oracle: forward hooks that apply the published formula, row by row, to the same draws."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import ConvNet, TextNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.augment.transforms.drop import Dropout
from graphaug.errors import BatchError, InvalidOption, SiteNotFound

pytestmark = pytest.mark.few(2)

VECTOR = torch.linspace(-1, 1, 8, dtype=torch.float64)


# --- the published formulas, one row at a time -----------------------------------------------------


def noise(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    return h[i] + 0.3 * draws.noise[j]


def site_noise(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    values = h.detach().flatten()
    spread = ((values - values.mean()) ** 2).sum().div(len(values) - 1).sqrt()
    return h[i] + 0.3 * spread * draws.noise[j]


def manifold_mixup(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    lam, other = draws.lam[j], rows[int(draws.partners[j])]
    return lam * h[i] + (1 - lam) * h[other]


def extrapolation(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    return h[i] + 0.5 * (h[i] - h[rows[int(draws.partners[j])]].detach())


def mixstyle(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    own, other = (
        (h[k].mean(-2).detach(), h[k].var(-2).add(1e-6).sqrt().detach()) for k in (i, rows[draws.partners[j]])
    )
    lam = draws.lam[j]
    return (
        (h[i] - own[0]) / own[1] * (lam * own[1] + (1 - lam) * other[1]) + lam * own[0] + (1 - lam) * other[0]
    )


def pca(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    """Of the covariance matrix of the whole batch, not of the singular values."""
    flat = h.detach().flatten(1)
    centred = flat - flat.mean(0)
    direction = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]
    row = h[i].flatten()
    return (row - ((row - flat.mean(0)) @ direction) * direction).view_as(h[i])


def steering(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    return h[i] + 2 * VECTOR


def squashed(h: Tensor, i: int, j: int, rows: list[int], draws: Any) -> Tensor:
    return torch.tanh(h[i])


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    formula: Callable[[Tensor, int, int, list[int], Any], Tensor]
    number: tuple[str, float] | None = None


CASES = {
    "noise": Case(lambda: ga.Noise(0.3), noise, ("sigma", 0.7)),
    "noise-site": Case(lambda: ga.Noise(0.3, relative="site"), site_noise, ("sigma", 0.7)),
    "manifold mixup": Case(lambda: ga.Mix(alpha=0.8), manifold_mixup, ("alpha", 2.0)),
    "extrapolation": Case(lambda: ga.Mix("extrapolate", detach=True), extrapolation, ("lam", 0.1)),
    "mixstyle": Case(lambda: ga.Statistics("mixstyle"), mixstyle, ("alpha", 0.9)),
    "pca": Case(lambda: ga.PCA(1), pca, ("k", 2)),
    "steering": Case(lambda: ga.Add(VECTOR, scale=2.0), steering, ("scale", 0.5)),
    "module": Case(lambda: nn.Tanh(), squashed),
    "function": Case(lambda: torch.tanh, squashed),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def text(rows: int = 7) -> Tensor:
    return torch.randint(20, (rows, 6), generator=torch.Generator().manual_seed(2))


def model(dtype: torch.dtype = torch.float64) -> TextNet:
    torch.manual_seed(1)
    return TextNet().to(dtype)


def rewritten(case: Case, net: nn.Module | None = None, **options: Any) -> ga.AugmentedModule:
    net = model() if net is None else net
    return ga.rewrite(net, "blocks.1", transform=case.make(), example_inputs=text(), **options)


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    named = dict(net.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def train_step(aug: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    torch.manual_seed(seed)
    out = aug(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return out.detach(), gradients(aug, (out * weight).sum())


def assert_equal(one: Any, other: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    for name, gradient in one[1].items():
        theirs = other[1].get(name)
        if gradient is None or theirs is None:
            assert not any(g is not None and g.any() for g in (gradient, theirs)), name
        else:
            torch.testing.assert_close(gradient, theirs, rtol=tolerance, atol=tolerance, msg=name)


# --- equal to the formula --------------------------------------------------------------------------


HOW = {"dense": ("dense", False, 0.4), "sparse": ("sparse", True, 0.4)}
MORE = [
    (CASES[name], (backward, backward == "sparse", subset))
    for name in ("noise", "manifold mixup")
    for backward in HOW
    for subset in (0.0, 1.0)
]


@pytest.mark.parametrize(
    ("case", "how"),
    [
        *(
            pytest.param(case, how, id=f"{name}-{kind}")
            for name, case in CASES.items()
            for kind, how in HOW.items()
        ),
        *MORE,
        (CASES["manifold mixup"], ("dense", True, 0.4)),
    ],
)
@pytest.mark.long
def test_a_site_computes_the_published_formula(
    case: Case, how: tuple[str, bool, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, stop_grad, subset = how
    net, x = model(), text()
    aug = rewritten(case, net, subset=subset, stop_grad=stop_grad, backward=backward)
    (node,) = aug.augmentations.values()
    seen: list[Any] = []
    draw = node.transform.draw
    monkeypatch.setattr(node.transform, "draw", lambda *args: seen.append(draw(*args)) or seen[-1])
    found = train_step(aug, x, 3)
    drawn = aug.drawn["blocks.1"]
    rows, order = drawn.rows.nonzero().flatten().tolist(), drawn.index.tolist()
    assert len(rows) == round(subset * 7)
    assert set(rows) <= set(order)

    def hook(module: nn.Module, args: Any, h: Tensor) -> Tensor:
        out = list(h.unbind(0))
        for i in rows:
            new = case.formula(h, i, order.index(i), order, seen[0])
            out[i] = new.detach() if stop_grad else new
        return torch.stack(out)

    handle = net.blocks[1].register_forward_hook(hook)
    expected = train_step(net, x, 3)
    handle.remove()
    assert_equal(found, expected)


@every
@pytest.mark.long
def test_verify_draws_the_same_once_more(case: Case) -> None:
    stop_grad = case.number is not None
    aug = rewritten(case, stop_grad=stop_grad)
    claims = ga.verify(aug, text(), tolerance=1e-9)
    assert "4 of 7 rows augmented, by" in str(claims)
    assert ("gradient of augmented rows below" in str(claims)) == stop_grad


def test_a_module_that_draws_is_verified_with_the_same_random_numbers() -> None:
    ga.verify(
        ga.rewrite(ConvNet(), "layer1", transform=nn.Dropout2d(0.3), stop_grad=True), torch.randn(6, 3, 8, 8)
    )


class Twice(ga.Noise):
    """Adds another noise than it has drawn."""

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return super().forward(rows, draws) + next(self.offsets)


def test_verify_sees_a_transform_that_does_not_repeat_its_draws() -> None:
    transform = Twice(0.1)
    aug = ga.rewrite(model(), "blocks.1", transform=transform, example_inputs=text())
    (node,) = aug.augmentations.values()
    node.transform.offsets = iter(range(100))
    with pytest.raises(ga.errors.VerificationError, match=r"differ by .* from those of Twice"):
        ga.verify(aug, text())


# --- rows, modes, copies, types --------------------------------------------------------------------


@every
@pytest.mark.long
def test_eval_mode_is_the_model_and_strip_gives_it_back(case: Case) -> None:
    net, x = model(), text()
    keys = list(net.state_dict())
    aug = rewritten(case, net)
    assert list(aug.state_dict()) == keys
    assert torch.equal(aug.eval()(x), net.eval()(x))
    with pytest.raises(BatchError, match="nothing has been drawn"):
        _ = aug.drawn["blocks.1"].rows
    assert repr(aug.drawn).startswith("{'blocks.1': <nothing has been drawn")
    aug.train()(x)
    assert repr(aug.drawn).startswith("{'blocks.1': Drawn(rows=tensor([")
    assert ga.strip(aug.train()) is net


@pytest.mark.parametrize("within", [torch.func.grad, partial(torch.func.vmap, randomness="different")])
def test_what_was_drawn_inside_a_transform_of_torch_func_is_not_told(within: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    aug = ga.rewrite(net, "0", rate=0.5, example_inputs=torch.ones(3, 4)).train()
    aug(torch.ones(3, 4))
    assert aug.drawn["0"].rows.shape == (3,)
    within(lambda x: aug(x).sum())(torch.ones(3, 4) if within is torch.func.grad else torch.ones(2, 3, 4))
    with pytest.raises(BatchError, match=r"ran inside of a transform of torch\.func"):
        _ = aug.drawn["0"].rows
    aug(torch.ones(5, 4))
    assert aug.drawn["0"].rows.shape == (5,)


@every
@pytest.mark.long
def test_copies_draw_the_same_and_go_their_own_way(case: Case) -> None:
    aug, x = rewritten(case, stop_grad=True), text()
    aug(x)
    expected = train_step(aug, x, 3)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert str(twin.plan) == str(aug.plan)
        assert_equal(train_step(twin, x, 3), expected)
        if case.number:
            twin.set("blocks.1", **dict([case.number]))
            assert_equal(train_step(aug, x, 3), expected)


@every
@pytest.mark.long
def test_half_precision_and_autocast_train(case: Case) -> None:
    aug, x = rewritten(case, model(torch.float32), stop_grad=case.number is not None), text()
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = train_step(aug, x, 0)
    assert out.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in grads.values())
    half, grads = train_step(aug.to(torch.bfloat16), x, 0)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in grads.values())


@pytest.mark.few(1)
@pytest.mark.slow
@every
@pytest.mark.parametrize("options", [{}, {"stop_grad": True}], ids=["dense", "sparse"])
@pytest.mark.long
def test_compiled_whole_it_is_the_same_at_all_sizes_and_its_numbers_recompile_nothing(
    case: Case, options: dict[str, Any]
) -> None:
    torch._dynamo.reset()
    net, x = model(), text()
    aug = rewritten(case, net, **options)
    assert aug.plan.backward == ("sparse" if options else "dense")
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(train_step(compiled, x, 3)[0], train_step(aug, x, 3)[0], rtol=1e-9, atol=1e-9)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            if case.number:
                aug.set(
                    "blocks.1",
                    **{case.number[0]: case.number[1] * (1 if case.number[0] == "k" else 1 + seed)},
                )
            torch.manual_seed(seed)
            out = compiled(x)
            mine = gradients(aug, out.square().sum())
            drawn = copy.deepcopy(compiled.drawn["blocks.1"])
            torch.manual_seed(seed)
            expected = aug(x)
            theirs = gradients(aug, expected.square().sum())
            assert_equal((out, mine), (expected, theirs), 1e-9)
            eager = aug.drawn["blocks.1"]
            assert torch.equal(drawn.rows, eager.rows)
            assert torch.equal(drawn.index, eager.index)
            if isinstance(eager.draws, tuple):
                assert torch.equal(drawn.lam, eager.lam)
                assert torch.equal(drawn.partners, eager.partners)
    # At its second size a batch's becomes a symbol in compiled code, which not every function of torch takes.
    for batch in (torch.cat([x, x[:2]]), torch.cat([x, x])):
        torch.testing.assert_close(
            train_step(compiled, batch, 3)[0], train_step(aug, batch, 3)[0], rtol=1e-9, atol=1e-9
        )


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_short_spelling_of_dropout_is_the_long_one() -> None:
    net, x = ConvNet(), torch.randn(6, 3, 8, 8)
    short = ga.rewrite(net, "layer1", rate=0.3, granularity="channel")
    long = ga.rewrite(net, "layer1", transform=ga.Dropout(0.3, "channel"))
    assert str(short.plan) == str(long.plan)
    torch.manual_seed(0)
    one = short(x)
    torch.manual_seed(0)
    assert torch.equal(long(x), one)
    for given in ({"rate": 0.5}, {"granularity": "element"}):
        with pytest.raises(InvalidOption, match="spells dropout"):
            ga.rewrite(net, "layer1", transform=ga.Dropout(0.3), **given)


def test_sites_have_their_own_transforms_and_options() -> None:
    net, x = ConvNet(), torch.randn(8, 3, 8, 8)
    at = {
        "layer1": ga.Noise(0.1, subset=0.25),
        "layer2": ga.Dropout(0.5, stop_grad=True, pairing="one-sided"),
        "pool": 0.2,
        "stem": torch.tanh,
    }
    aug = ga.rewrite(net, at, subset=0.5)
    requests = {str(s.request.target): s.request for s in aug.plan.sites}
    assert [requests[site].subset for site in at] == [0.25, 0.5, 0.5, 0.5]
    assert [requests[site].stop_grad for site in at] == [False, True, False, False]
    assert requests["layer2"].pairing == "one-sided"
    assert requests["pool"].rate == 0.2
    aug(x)
    assert [int(aug.drawn[site].rows.sum()) for site in at] == [2, 4, 4, 4]
    assert not aug.drawn["layer2"].rows[4:].any()
    ga.verify(aug, x)
    with pytest.raises(InvalidOption, match="says what is done at each site"):
        ga.rewrite(net, at, transform=ga.Noise())
    with pytest.raises(InvalidOption, match="two changes"):
        ga.rewrite(net, {"layer1": ga.Noise(), "layer*": ga.Mix()})


def test_the_options_of_a_transform_come_before_those_of_the_call() -> None:
    aug = ga.rewrite(
        ConvNet(), ["layer1", "layer2"], transform=ga.Noise(0.1, subset=0.25), subset=0.75, stop_grad=True
    )
    assert {s.request.subset for s in aug.plan.sites} == {0.25}
    assert all(s.request.stop_grad for s in aug.plan.sites)
    with pytest.raises(InvalidOption, match=r"Noise has no option 'subst'\. Did you mean 'subset'"):
        ga.Noise(0.1, subst=0.3)


def test_numbers_are_set_by_site_all_or_none() -> None:
    shared = ga.Noise(0.1)
    aug = ga.rewrite(ConvNet(), ["layer1", "layer2"], transform=shared)
    aug.set("layer1", sigma=0.3, subset=0.25)
    sigma = {str(t): node.numbers() for t, node in aug.augmentations.items()}
    assert sigma == {"layer1": {"sigma": 0.3, "subset": 0.25}, "layer2": {"sigma": 0.1, "subset": 0.5}}
    aug.set(sigma=0.5)
    assert {node.numbers()["sigma"] for node in aug.augmentations.values()} == {0.5}
    assert shared.numbers()["sigma"] == 0.1
    with pytest.raises(InvalidOption, match="outside"):
        aug.set("layer1", subset=0.75, sigma=-1)
    assert aug.deep_augment.numbers() == {"sigma": 0.5, "subset": 0.25}
    with pytest.raises(InvalidOption, match=r"no number 'sgima'\. Did you mean 'sigma'"):
        aug.set("layer1", sgima=1)
    with pytest.raises(InvalidOption, match=r"no site of this model has a number 'rate'"):
        aug.set_rate(0.3)
    with pytest.raises(SiteNotFound, match=r"'layer3'\. Did you mean"):
        aug.set("layer3", sigma=1)


def test_set_reaches_dropout_and_set_rate_every_rate() -> None:
    at = {"layer1": 0.5, "layer2": ga.Dropout(0.5, "block", block_size=2), "stem": ga.Noise()}
    aug = ga.rewrite(ConvNet(), at)
    aug.set_rate(0.2)
    assert [node.numbers().get("rate") for node in aug.augmentations.values()] == [0.2, 0.2, None]
    aug.set("layer1", rate=0.7)
    assert float(aug.augmentations[next(iter(aug.augmentations))].rate) == 0.7


@pytest.mark.long
def test_a_second_rewrite_keeps_the_numbers_that_were_set() -> None:
    first = ga.rewrite(ConvNet(), "layer1", transform=ga.Noise(0.1))
    first.set("layer1", sigma=0.4, subset=0.25)
    both = ga.rewrite(first, "layer2", transform=ga.Mix())
    assert [node.numbers() for node in both.augmentations.values()] == [
        {"sigma": 0.4, "subset": 0.25},
        {"alpha": 2.0, "subset": 0.5},
    ]
    both.set("layer1", sigma=0.9)
    assert first.deep_augment.numbers()["sigma"] == 0.4


@pytest.mark.long
def test_what_a_transform_cannot_have_is_refused() -> None:
    net = ConvNet()
    with pytest.raises(InvalidOption, match="Mix needs to know how many there are"):
        ga.rewrite(net, "layer1", transform=ga.Mix(), sampling="bernoulli")
    with pytest.raises(InvalidOption, match=r"give subset=1\.0"):
        ga.rewrite(net, "layer1", transform=ga.Tokens(0.5))
    with pytest.raises(InvalidOption, match=r"Noise is a class: give an instance"):
        ga.rewrite(net, "layer1", transform=ga.Noise)
    with pytest.raises(InvalidOption, match="is no transform"):
        ga.rewrite(net, "layer1", transform="noise")
    aug = ga.rewrite(net, "layer1", transform=lambda rows: rows[:, :1])
    with pytest.raises(BatchError, match="keep shape and type"):
        aug(torch.randn(6, 3, 8, 8))
    aug = ga.rewrite(net, "layer1", transform=ga.Noise(relative="class"))
    with pytest.raises(BatchError, match=r"aug\.given\(labels="):
        aug(torch.randn(6, 3, 8, 8))
    with (
        pytest.raises(InvalidOption, match=r"'label' cannot be given\. Did you mean 'labels'"),
        aug.given(label=None),
    ):
        pass


def test_a_trained_transform_trains_and_is_in_the_state_dict() -> None:
    net, adapter = ConvNet(), nn.Conv2d(6, 6, 1)
    aug = ga.rewrite(net, "layer1", transform=adapter)
    added = [name for name in aug.state_dict() if name not in net.state_dict()]
    assert added == ["deep_augment.transform.fn.weight", "deep_augment.transform.fn.bias"]
    assert "the transform's own parameters are in the state_dict" in str(aug.plan)
    aug(torch.randn(6, 3, 8, 8)).sum().backward()
    assert adapter.weight.grad is not None


# --- what the loss reads, and what transforms are given ----------------------------------------------


@pytest.mark.parametrize("subset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.long
def test_supervised_manifold_mixup_is_three_lines(subset: float, compiled: bool) -> None:
    """Against Verma et al. 2019 written down: hidden states and one-hot labels mixed alike, soft cross-entropy."""
    net, x, labels = model(), text(), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    aug = ga.rewrite(net, "blocks.1", transform=ga.Mix(alpha=1.0), subset=subset, example_inputs=x)
    run = torch.compile(aug, fullgraph=True, backend="aot_eager") if compiled else aug
    torch.manual_seed(4)
    logits = run(x)
    loss = ga.mixed_cross_entropy(logits, labels, run.drawn["blocks.1"])
    mine = gradients(net, loss)

    drawn = run.drawn["blocks.1"]
    mixing = torch.eye(7, dtype=torch.float64)
    for k, i in enumerate(drawn.index.tolist() if subset else []):
        mixing[i] = 0
        mixing[i, i] += drawn.lam[k]
        mixing[i, drawn.partners[k]] += 1 - drawn.lam[k]
    handle = net.blocks[1].register_forward_hook(lambda m, a, h: torch.einsum("ij,jtd->itd", mixing, h))
    targets = mixing @ F.one_hot(labels, 4).double()
    expected = -(targets * F.log_softmax(net(x), 1)).sum(1).mean()
    handle.remove()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    assert_equal((loss, mine), (expected, gradients(net, expected)))


def test_a_loss_that_does_not_fit_what_was_drawn_is_refused() -> None:
    aug = ga.rewrite(ConvNet(), {"layer1": ga.Noise(), "layer2": ga.Mix()})
    out = aug(torch.randn(6, 3, 8, 8))
    with pytest.raises(BatchError, match="nothing was mixed at this site"):
        ga.mixed_cross_entropy(out, torch.zeros(6, dtype=torch.long), aug.drawn["layer1"])
    with pytest.raises(BatchError, match="6 rows were at the site"):
        ga.mixed_cross_entropy(out[:3], torch.zeros(3, dtype=torch.long), aug.drawn["layer2"])
    with pytest.raises(BatchError, match="no partners were drawn"):
        _ = aug.drawn["layer1"].partners
    with pytest.raises(SiteNotFound, match="not augmented at 'layer5'"):
        _ = aug.drawn["layer5"]


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.long
def test_labels_and_sources_are_given_in_a_block(backward: str) -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    x, options = text(), {"stop_grad": True, "backward": backward, "example_inputs": text()}
    aug = ga.rewrite(
        model(), "blocks.1", transform=ga.Mix(alpha=1.0, within_class=True), subset=0.75, **options
    )
    for seed in range(5):
        torch.manual_seed(seed)
        with aug.given(labels=labels):
            aug(x)
        drawn = aug.drawn["blocks.1"]
        assert torch.equal(labels[drawn.partners], labels[drawn.index])
    with pytest.raises(BatchError, match="labels"):
        aug(x)
    source = torch.randn(7, 6, 8, dtype=torch.float64)
    patched = ga.rewrite(model(), "blocks.1", transform=ga.Replace(), subset=0.5, **options)
    seen: list[Tensor] = []
    handle = ga.strip(patched).blocks[2].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with patched.given(source=source):
        patched(x)
    handle.remove()
    rows = patched.drawn["blocks.1"].rows
    assert torch.equal(seen[0][rows], source[rows])
    assert not torch.isclose(seen[0][~rows], source[~rows]).any(-1).any(-1).all()


# --- fewer tokens ------------------------------------------------------------------------------------


class Reads(nn.Module):
    """A model whose suffix reads sizes off the value at the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.first(self.embed(tokens))
        n, t, d = h.shape
        h = torch.tanh(h).reshape(n * t, d)
        return self.last(h).view(n, t, 3).mean(1)


@pytest.mark.parametrize("make", [model, lambda: Reads().double()], ids=["TextNet", "sizes"])
@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.long
def test_patchdropout_at_a_site_is_a_gather(make: Callable[[], nn.Module], stop_grad: bool) -> None:
    net, x = make(), text()
    at = "first" if isinstance(net, Reads) else "blocks.0"
    options: dict[str, Any] = {"subset": 1.0, "stop_grad": stop_grad, "example_inputs": x}
    aug = ga.rewrite(net, at, transform=ga.Tokens(0.5, prefix=1), **options)
    found = train_step(aug, x, 3)
    kept = aug.drawn[at].draws.kept
    assert kept.shape == (7, 3)
    module = net.get_submodule(at)

    def hook(m: nn.Module, a: Any, h: Tensor) -> Tensor:
        out = torch.stack([row[index] for row, index in zip(h, kept, strict=True)])
        return out.detach() if stop_grad else out

    handle = module.register_forward_hook(hook)
    expected = train_step(net, x, 3)
    handle.remove()
    assert_equal(found, expected)
    assert torch.equal(aug.eval()(x), net.eval()(x))
    assert aug.plan.backward == "dense"
    assert "what is behind it gets fewer tokens, and takes none from elsewhere" in " ".join(aug.plan.notes)


def test_dropout_of_blocks_is_no_other_class() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", transform=Dropout(0.3, "block", block_size=3))
    assert type(aug.deep_augment).__name__ == "Transformed"
    ga.verify(aug, torch.randn(6, 3, 8, 8))
