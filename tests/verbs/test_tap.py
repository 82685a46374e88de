"""Reading activations. Oracle: forward hooks on the model, which keep a copy of what they see."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from networks import ConvNet, TextNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, InvalidOption, NotRewritten, SiteNotFound, VerificationError

pytestmark = pytest.mark.few(2)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=4, drop_rate=0.1
    )


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **sizes)
    return transformers.BertModel(config)


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], Any]] = {
    "ConvNet": (ConvNet, ["stem.1", "layer1", "layer2.0.conv1", "pool"], IMAGES),
    "TextNet": (TextNet, ["embed", "blocks.1"], TOKENS),
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=4),
        ["bn1", "layer1.0.bn1", "layer3", "avgpool"],
        IMAGES,
    ),
    "vit": (vit, ["patch_embed", "blocks.0.attn", "blocks.2"], IMAGES),
    "bert": (
        bert,
        ["embeddings", "encoder.layer.0", "encoder.layer.1"],
        {"input_ids": TOKENS, "attention_mask": torch.ones(3, 6, dtype=torch.long)},
    ),
}
every = pytest.mark.parametrize(("make", "sites", "x"), MODELS.values(), ids=MODELS)


def call(model: nn.Module, x: Any) -> Any:
    torch.manual_seed(5)
    return model(**x) if isinstance(x, dict) else model(x)


def tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def hooked(model: nn.Module, sites: list[str], x: Any) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            seen[site] = tensor(out).clone()

        return model.get_submodule(site).register_forward_hook(hook)

    handles = [keep(site) for site in sites]
    call(model, x)
    for handle in handles:
        handle.remove()
    return seen


def gradients(loss: Tensor, model: nn.Module) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)


@every
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.long
def test_it_returns_what_hooks_see(
    make: Callable[[], nn.Module], sites: list[str], x: Any, training: bool
) -> None:
    torch.manual_seed(0)
    model = make().train(training)
    twin = copy.deepcopy(model)
    found = call(ga.tap(model, sites, example_inputs=x), x)
    expected = hooked(twin, sites, x)
    assert list(found) == sites
    for site in sites:
        assert torch.equal(tensor(found[site]), expected[site])
        weight = torch.randn(expected[site].shape, generator=torch.Generator().manual_seed(1))
        mine, theirs = (
            torch.autograd.grad(
                (tensor(h[site]) * weight).sum(), list(net.parameters()), allow_unused=True, retain_graph=True
            )
            for h, net in ((found, model), (expected, twin))
        )
        assert any(g is not None for g in mine)
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_nothing_behind_the_last_site_is_run() -> None:
    model = ConvNet()
    ran: list[str] = []
    for name, module in model.named_modules():
        if name in ("stem.0", "layer1.0.conv1", "layer2.0.conv1", "fc"):
            module.register_forward_pre_hook(lambda m, a, name=name: ran.append(name))
    tapped = ga.tap(model, ["stem", "layer1"])
    ran.clear()
    tapped(torch.randn(2, 3, 8, 8))
    assert ran == ["stem.0", "layer1.0.conv1"]


@pytest.mark.slow
@pytest.mark.long
def test_compiled_it_returns_the_same_without_recompiles() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    tapped = ga.tap(model, ["bn1", "layer2"])
    compiled = torch.compile(tapped, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        tapped.train(training)
        frozen = {n: b.clone() for n, b in model.named_buffers()}
        found = compiled(IMAGES)
        model.load_state_dict(frozen, strict=False)
        for site, h in tapped(IMAGES).items():
            torch.testing.assert_close(found[site], h)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(IMAGES)


def test_copies_modes_and_parameters_are_the_models() -> None:
    model = TextNet()
    tapped = ga.tap(model, "blocks.1")
    assert {id(p) for p in tapped.parameters()} == {id(p) for p in model.parameters()}
    assert list(tapped.state_dict()) == list(model.state_dict())
    tapped.eval()
    assert not model.training
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        assert torch.equal(twin(TOKENS)["blocks.1"], tapped(TOKENS)["blocks.1"])


class SequenceFirst(nn.Module):
    """Tokens in front: T×N×D inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(20, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.embed(tokens).transpose(0, 1)).mean(0)


@pytest.mark.long
def test_samples_are_brought_to_the_front_where_they_are_proved_to_lie() -> None:
    model = SequenceFirst().eval()
    plain = ga.tap(model, "layer", example_inputs=TOKENS)(TOKENS)["layer"]
    first = ga.tap(model, "layer", rows_first=True, example_inputs=TOKENS)(TOKENS)["layer"]
    assert plain.shape == (6, 3, 8)
    assert torch.equal(first, plain.transpose(0, 1))


@pytest.mark.long
def test_inputs_operations_calls_and_rewritten_models() -> None:
    model, x = ConvNet(), IMAGES
    aug = ga.rewrite(model, "layer1", rate=1.0, subset=1.0)
    found = ga.tap(aug, ["layer1.1.relu@1", "layer1.1.add", "fc.input"])(x)
    assert list(found) == ["layer1.1.relu@1", "layer1.1.add", "fc.input"]
    torch.testing.assert_close(found["layer1.1.relu@1"], found["layer1.1.add"].relu())
    assert found["fc.input"].any()  # nothing is dropped
    with pytest.raises(SiteNotFound, match=r"layer7"):
        ga.tap(model, "layer7")


def test_the_example_of_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("graphaug.tap"))
    assert (results.failed, results.attempted > 1) == (0, True)


# --- verified ----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.long
def test_verify_proves_it(make: Callable[[], nn.Module], sites: list[str], x: Any, rows_first: bool) -> None:
    torch.manual_seed(0)
    model = make()
    taps = ga.tap(model, sites, rows_first=rows_first, example_inputs=x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    claims = ga.verify(taps, x).claims
    values = f"{len(sites)} values bit-equal to what forward hooks see"
    assert claims[:2] == (f"eval mode: {values}", f"training mode: {values}")
    assert claims[2].endswith("gradients equal those behind what forward hooks see")
    assert not claims[2].startswith("training mode: 0")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_verify_finds_a_tap_without_gradient_and_one_of_another_value() -> None:
    taps = ga.tap(ConvNet(), ["layer1"], example_inputs=IMAGES)
    plain = type(taps)._forward_training
    type(taps)._forward_training = lambda self, **x: {n: h.detach() for n, h in plain(self, **x).items()}
    with pytest.raises(VerificationError, match="have not both a gradient"):
        ga.verify(taps, IMAGES)
    type(taps)._forward_training = lambda self, **x: {n: h * 1.0001 for n, h in plain(self, **x).items()}
    with pytest.raises(VerificationError, match="tap at 'layer1' differs from what a hook sees"):
        ga.verify(taps, IMAGES)


class Operation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def test_verify_claims_nothing_of_an_operation() -> None:
    with pytest.raises(VerificationError, match="which no forward hook reaches"):
        ga.verify(ga.tap(Operation(), "tanh"), torch.randn(3, 4))
    with pytest.raises(NotRewritten, match="not a TextNet"):
        ga.verify(TextNet(), TOKENS)


class Asking(nn.Module):
    """What it computes depends on a size, and on a mode of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if x.shape[1] > 5:
            h = h * 2
        if not torch.is_grad_enabled():
            h = h + 1
        out: Tensor = self.b(h)
        return out if x.shape[2] == 4 and x.shape[1] < 10 else -out


@pytest.mark.parametrize("mode", [True, False])
def test_what_was_asked_before_the_tap_is_checked_as_in_a_rewritten_model(mode: bool) -> None:
    tapped = ga.tap(Asking(), "b", side="before", example_inputs=torch.randn(3, 5, 4)).train(mode)
    tapped(torch.randn(4, 4, 4))
    with pytest.raises(AssumptionViolated, match="shape"):
        tapped(torch.randn(3, 7, 4))
    with torch.no_grad(), pytest.raises(AssumptionViolated, match="is_grad_enabled"):
        tapped(torch.randn(3, 5, 4))


def test_what_is_asked_behind_the_last_tap_is_not_checked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Asking())
    tapped = ga.tap(model, "0", example_inputs=torch.randn(3, 5, 4)).eval()
    with torch.no_grad():
        x = torch.randn(3, 12, 4)
        assert torch.equal(tapped(x)["0"], model[0](x))
    tapped = ga.tap(model, "1.a", example_inputs=torch.randn(3, 5, 4)).eval()
    with torch.no_grad():
        assert torch.equal(tapped(x)["1.a"], model[1].a(model[0](x)))


class Inner(nn.Module):
    """It returns its tensors in a structure."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.t, self.kind = nn.Linear(4, 4), kind

    def forward(self, x: Tensor) -> Any:
        h = self.t(x)
        return {"h": h} if self.kind is dict else (h, h.relu()) if self.kind is tuple else h


class Outer(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.inner, self.last = Inner(kind), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.last(h["h"] if isinstance(h, dict) else h[0] + h[1] if isinstance(h, tuple) else h)


@pytest.mark.parametrize("inside", ["inner.t", "inner.relu"])
def test_a_structure_of_an_opened_site_is_refused_and_given_whole_by_itself(inside: str) -> None:
    model, x = Outer(tuple), torch.randn(3, 4)
    with pytest.raises(
        InvalidOption, match=rf"'inner' returns .* '{inside}' lies inside .* tap 'inner' by itself"
    ):
        ga.tap(model, ["inner", inside])
    alone = ga.tap(model, "inner")(x)["inner"]
    assert isinstance(alone, tuple)
    assert all(map(torch.equal, alone, model.inner(x)))
    assert torch.equal(ga.tap(model, inside)(x)[inside], model.inner(x)[inside == "inner.relu"])


def test_so_is_a_mapping_of_one_tensor_and_a_tensor_is_not() -> None:
    with pytest.raises(InvalidOption, match="tap 'inner' by itself"):
        ga.tap(Outer(dict), ["inner.t", "inner"])
    model, x = Outer(Tensor), torch.randn(3, 4)
    assert torch.equal(ga.tap(model, ["inner", "inner.t"])(x)["inner"], model.inner(x))


# --- what no tap is computed from, and stays -------------------------------------------------------------


class Shielded(nn.Module):
    """A frozen backbone under no_grad, with a region in a region, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.backbone(x)
            with torch.enable_grad():
                h = h + self.neck(x).relu()
        return self.head(self.neck(h).relu())


class Momentum(nn.Module):
    """MoCo's update of the keys' encoder in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        for p, q in zip(self.k.parameters(), self.q.parameters(), strict=True):
            p.mul_(0.5).add_(q, alpha=0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        with torch.no_grad():
            self.update()
            k = self.k(x)
        return (q * k).sum(1)


class TwoTowers(nn.Module):
    """Dropout in a branch that the second one is not computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.first(self.a(x))) + self.second(self.b(x)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("make", "site"),
    [
        (Shielded, "backbone"),
        (Shielded, "neck@0"),
        (Shielded, "neck@1"),
        (Momentum, "k"),
        (Momentum, "q"),
        (TwoTowers, "second"),
        (TwoTowers, "first"),
    ],
)
@pytest.mark.few(14)
def test_what_runs_before_the_site_is_run(make: Callable[[], nn.Module], site: str, train: bool) -> None:
    """Oracle: a hook on a copy of the model: value, gradients, what is left changed; and the grad mode stays."""
    torch.manual_seed(0)
    model, x = make().train(train), torch.randn(4, 6)
    twin, taken = copy.deepcopy(model), []
    path, _, call_number = site.partition("@")

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        taken.append(out)

    twin.get_submodule(path).register_forward_hook(hook)
    tapped = ga.tap(model, site, example_inputs=x).train(train)
    torch.manual_seed(3)
    twin(x)
    torch.manual_seed(3)
    value = tapped(x)[site]
    seen = taken[int(call_number or 0)]
    assert torch.is_grad_enabled()
    assert torch.equal(value, seen)
    assert value.requires_grad == seen.requires_grad
    if seen.requires_grad:
        seen.square().sum().backward()
        value.square().sum().backward()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None and q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad)
    behind = {"first": "norm.", "q": "k."}.get(site, "-")  # what lies behind the last site is not run
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        if not name.startswith(behind):
            assert torch.equal(mine, theirs), name
    assert "bit-equal to what forward hooks see" in str(ga.verify(tapped, x))


class Average(nn.Module):
    """Assigns a buffer anew before the site, and an attribute behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        y = self.b(x - self.mean)
        self.last = y.detach().sum()
        return self.a(y)


def test_what_the_forward_assigns_before_the_site_is_assigned_in_every_call() -> None:
    """Oracle: a hook on a copy, over three calls."""
    torch.manual_seed(0)
    model, taken = Average().train(), []
    twin = copy.deepcopy(model)
    twin.b.register_forward_hook(lambda m, a, out: taken.append(out))
    tapped = ga.tap(model, "b", example_inputs=torch.randn(4, 6)).train()
    for step in range(3):
        x = torch.randn(4, 6)
        twin(x)
        assert torch.equal(tapped(x)["b"], taken[step])
        assert torch.equal(model.mean, twin.mean)
    assert not hasattr(model, "last")  # what lies behind the site is not run


class Passed(nn.Module):
    """A value with a gradient goes through a module in a region without, and is used there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.same = nn.Linear(6, 6), nn.Linear(6, 6), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        with torch.no_grad():
            z = self.same(h)
            w = self.b(z)
        return h + w


@pytest.mark.parametrize(
    ("sites", "side"), [(["same", "b"], "after"), (["same"], "after"), (["b"], "before")]
)
def test_a_value_keeps_its_gradient_in_a_region_without(sites: list[str], side: str) -> None:
    model, x = Passed(), torch.randn(4, 6)
    tapped = ga.tap(model, sites, side=side, example_inputs=x)
    found = next(iter(tapped(x).values()))
    assert found.requires_grad
    found.sum().backward()
    assert model.a.weight.grad is not None
    assert "gradients equal" in str(ga.verify(tapped, x))


def test_compiled_it_keeps_regions_without_gradients() -> None:
    model, x = Shielded(), torch.randn(4, 6)
    tapped = torch.compile(ga.tap(model, "backbone", example_inputs=x), fullgraph=True, backend="aot_eager")
    assert not tapped(x)["backbone"].requires_grad
    assert torch.is_grad_enabled()
