"""Deep views. Oracle: the plain way, the same rewrite without views on the batch k times."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from networks import ConvNet, TextNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import InvalidOption, SparseBackwardError

pytestmark = pytest.mark.few(2)

TOKENS = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertModel(
        transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **sizes, **quiet)
    )


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=4
    )


class Around(nn.Module):
    """Sizes, a mask, a table and a tuple pass around the cut; opened code writes into what it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(6, 8))

    def forward(self, tokens: Tensor) -> Any:
        n, t = tokens.shape
        seen = (tokens > 3).unsqueeze(-1)
        pair = (seen.double(), torch.arange(t, device=tokens.device))
        h = torch.tanh(self.first(self.embed(tokens)))
        flat = (h + self.table).reshape(n * t, 8)
        flat += 1
        out = self.last(flat).view(n, t, 3) * pair[0]
        return out[:, pair[1]].sum(1), seen.squeeze(-1)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).transpose(0, 1)
        for layer in self.layers:
            h = layer(h)
        return h.mean(0)


MODELS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Tensor]]] = {
    "TextNet": (TextNet, "blocks.1", {"tokens": TOKENS}),
    "bert": (bert, "encoder.layer.0", {"input_ids": TOKENS, "attention_mask": MASK}),
    "vit": (vit, "blocks.0", {"x": torch.randn(3, 3, 32, 32, dtype=torch.float64)}),
    "around": (Around, "first", {"tokens": TOKENS}),
    "operation": (Around, "tanh", {"tokens": TOKENS}),
    "sequence first": (SequenceFirst, "layers.0", {"tokens": TOKENS}),
}
every = pytest.mark.parametrize(("make", "at", "x"), MODELS.values(), ids=MODELS)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [v for v in (value if isinstance(value, tuple) else value.values()) if isinstance(v, Tensor)]


def step(model: nn.Module, x: dict[str, Tensor], seed: int = 0) -> tuple[list[Tensor], list[Tensor | None]]:
    torch.manual_seed(seed)
    out = leaves(model(**x))
    generator = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in out if o.requires_grad)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [o.detach() for o in out], list(grads)


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def often(x: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: torch.cat([value] * times) for name, value in x.items()}


@pytest.mark.few(1)
@every
@pytest.mark.parametrize(("views", "stop_grad"), [(2, True), (3, False)])
def test_views_are_the_plain_way(
    make: Callable[[], nn.Module], at: str, x: dict[str, Tensor], views: int, stop_grad: bool
) -> None:
    torch.manual_seed(0)
    model = make().double()
    options: dict[str, Any] = {"rate": 0.5, "subset": 0.5, "stop_grad": stop_grad, "example_inputs": x}
    aug = ga.rewrite(model, at, views=views, **options)
    plain = ga.rewrite(model, at, backward="dense", **options)
    found = step(aug, x)
    assert_equal(found, step(plain, often(x, views)))
    assert all(len(o) == 3 * views for o in found[0])
    assert aug.drawn[at].rows.shape == (3 * views,)
    for one, other in zip(leaves(aug.eval()(**x)), leaves(model.eval()(**x)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.few(1)
@every
@pytest.mark.parametrize("views", [2, 3])
def test_rows_that_are_stopped_in_all_views_have_no_backward(
    make: Callable[[], nn.Module], at: str, x: dict[str, Tensor], views: int
) -> None:
    """Oracle: the dense step on all copies, with the same rows stopped and a dropout that is known."""
    torch.manual_seed(0)
    model = make().double()
    options: dict[str, Any] = {"subset": 0.4, "stop_grad": True, "example_inputs": x}
    aug = ga.rewrite(model, at, views=views, pairing="together", backward="sparse", **options)
    plain = ga.rewrite(model, at, backward="dense", **options)
    assert aug.plan.backward == "sparse"
    assert "runs once for" in aug.plan.reason
    for stopped in ([True, False, False], [False, True, True], [True] * 3, [False] * 3):
        for module in (aug, plain):
            (node,) = module.augmentations.values()
            node.set(subset=sum(stopped) / 3)
            node.draw_rows = lambda rows, device, s=stopped: torch.tensor(s).repeat(rows // 3)
            node.draw_noise = lambda h: h.new_full((1,) * h.dim(), 0.3)
        found, expected = step(aug, x), step(plain, often(x, views))
        for grads in (found[1], expected[1]):  # of a part without rows: none, or zeros
            grads[:] = [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(grads, model.parameters(), strict=True)
            ]
        assert_equal(found, expected)


@pytest.mark.parametrize("name", ["TextNet", "sequence first"])
@pytest.mark.long
def test_verify_knows_views_that_are_stopped_together(name: str) -> None:
    make, at, x = MODELS[name]
    options: dict[str, Any] = {"views": 2, "stop_grad": True, "pairing": "together", "example_inputs": x}
    aug = ga.rewrite(make().double(), at, subset=0.6, **options)
    claims = str(ga.verify(aug, x, tolerance=1e-9))
    assert "4 of 6 rows augmented" in claims
    assert "training mode (sparse" in claims


@pytest.mark.long
def test_a_draw_that_stops_all_views_or_none() -> None:
    aug = ga.rewrite(TextNet(), "blocks.1", views=3, pairing="together", subset=0.34, example_inputs=TOKENS)
    aug(TOKENS)
    rows = aug.drawn["blocks.1"].rows
    assert torch.equal(rows, rows[:3].repeat(3))
    assert int(rows.sum()) == 3
    assert "all views of a row or none" in str(aug.plan)
    plan = ga.Plan.from_json(aug.plan.to_json())
    assert ga.rewrite(TextNet(), plan, example_inputs=TOKENS).plan == aug.plan
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert twin.augmentations["blocks.1"].copies == 3


@every
@pytest.mark.long
def test_verify_knows_views(make: Callable[[], nn.Module], at: str, x: dict[str, Tensor]) -> None:
    aug = ga.rewrite(make().double(), at, views=2, stop_grad=True, example_inputs=x)
    claims = str(ga.verify(aug, x, tolerance=1e-9))
    assert "training mode (2 views; dropout and batch statistics of the model itself off)" in claims


def test_every_row_of_every_view_has_draws_of_its_own() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    aug = ga.rewrite(net, "0", rate=0.5, subset=1.0, views=3, example_inputs=torch.ones(4, 60))
    out = aug(torch.ones(4, 60))
    assert len((out != 0).unique(dim=0)) == 12


@pytest.mark.long
def test_views_of_a_transform_with_partners_and_copies_of_the_model() -> None:
    torch.manual_seed(0)
    model = TextNet().double()
    options: dict[str, Any] = {"transform": ga.Mix(alpha=1.0), "subset": 0.5, "example_inputs": TOKENS}
    aug = ga.rewrite(model, "blocks.0", views=2, **options)
    expected = step(ga.rewrite(model, "blocks.0", **options), often({"tokens": TOKENS}, 2))
    for twin in (aug, copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert_equal(step(twin, {"tokens": TOKENS}), expected)
    plan = ga.Plan.from_json(aug.plan.to_json())
    assert_equal(step(ga.rewrite(model, plan, example_inputs=TOKENS), {"tokens": TOKENS}), expected)
    assert ga.strip(aug) is model


def test_batch_statistics_before_the_cut_are_those_of_the_rows_that_come_in() -> None:
    """The running variance is unbiased: of twice the rows it would be smaller."""
    torch.manual_seed(0)
    model = ConvNet().double()
    twin = copy.deepcopy(model)
    aug = ga.rewrite(model, "layer1", rate=0.0, views=2, example_inputs=IMAGES)
    aug(IMAGES)
    twin(IMAGES)
    norm = "stem.1.running_var"
    assert torch.equal(model.state_dict()[norm], twin.state_dict()[norm])
    assert "batch statistics before the cut are those of the rows that come in" in " ".join(aug.plan.notes)


def test_dropout_before_the_cut_is_said_to_be_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Linear(8, 2))
    aug = ga.rewrite(model, "2", views=2, example_inputs=torch.randn(5, 4))
    assert "share the dropout before the cut, as of '1'" in " ".join(aug.plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pairing"), [("TextNet", "any"), ("around", "any"), ("bert", "together")])
@pytest.mark.long
def test_compiled_whole_without_recompiles(name: str, pairing: str) -> None:
    make, at, x = MODELS[name]
    torch._dynamo.reset()
    aug = ga.rewrite(make().double(), at, views=2, stop_grad=True, pairing=pairing, example_inputs=x)
    assert aug.plan.backward == ("sparse" if pairing == "together" else "dense")
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    assert_equal(step(compiled, x), step(aug, x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (0.1, 0.9):
            aug.set_rate(rate)
            assert_equal(step(compiled, x, 3), step(aug, x, 3))


# --- refused -----------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Something of all rows passes around the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        total = x.detach().sum(0)
        return self.last(self.first(x) - total)


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)
        mask[:, 0] = 0
        mask *= (h > 0).to(mask)
        return self.last(h * mask)


@pytest.mark.parametrize(
    ("model", "at", "x", "message"),
    [
        (Centred(), "first", torch.randn(4, 4), "passes around the cut"),
        (WritesInput(), "first", {"x": torch.randn(4, 4), "mask": torch.ones(4, 4)}, "in place"),
        (ConvNet(), ["layer1", "layer2"], IMAGES.float(), "there are 2 sites"),
    ],
    ids=["all rows", "writes", "sites"],
)
def test_what_cannot_be_repeated_is_refused(model: nn.Module, at: Any, x: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=f"views=2 is not possible.*{message}"):
        ga.rewrite(model, at, views=2, example_inputs=x)


def test_options_that_views_do_not_have_are_refused() -> None:
    with pytest.raises(
        SparseBackwardError, match="stopped in one view and not in another; pairing='together'"
    ):
        ga.rewrite(TextNet(), "blocks.1", views=2, stop_grad=True, backward="sparse", example_inputs=TOKENS)
    for views in (0, -1, 1.5, True, "2", None):
        with pytest.raises(InvalidOption, match="whole number of views"):
            ga.rewrite(TextNet(), "blocks.1", views=views)


class Behind(nn.Module):
    """Something made of sizes, behind the cut in the graph but not computed from it."""

    def __init__(self, made: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(x, self.last(self.second(self.first(x))))


def contrasted(x: Tensor, h: Tensor) -> Tensor:
    return nn.functional.cross_entropy(h @ h.T, torch.arange(x.shape[0]))


SIZED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "targets": contrasted,
    "targets by size": lambda x, h: nn.functional.cross_entropy(h @ h.T, torch.arange(x.size(0))),
    "a table of pairs": lambda x, h: (h @ h.T * (1 - torch.eye(x.shape[0], dtype=h.dtype))).sum(1),
    "what is made of it": lambda x, h: h * (torch.zeros(x.shape[0]).double() + torch.arange(x.shape[0]))[:, None],
    "its own shape": lambda x, h: (h @ h.T * torch.ones(x.shape[0], x.shape[0]).tril().view(x.shape[0], -1)).sum(1),
    "filled in place": lambda x, h: (h @ h.T * torch.zeros(x.shape[0], x.shape[0]).fill_diagonal_(1)).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("made", SIZED.values(), ids=SIZED)
def test_what_is_made_of_sizes_is_made_for_all_views(made: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Oracle: the model on [x; x; x]."""
    torch.manual_seed(0)
    model, x = Behind(made).double(), torch.randn(4, 4, dtype=torch.float64)
    aug = ga.rewrite(model, "second", rate=0.0, views=3, example_inputs=x).train()
    for rows in (4, 2):
        torch.testing.assert_close(aug(x[:rows]), model(torch.cat([x[:rows]] * 3)))
    assert "ok" in str(ga.verify(aug, x))


def test_noise_by_size_is_drawn_for_each_view() -> None:
    model = Behind(lambda x, h: h + torch.randn(x.shape[0], h.shape[1]))
    x = torch.randn(4, 4)
    aug = ga.rewrite(model, "second", rate=0.0, views=2, example_inputs=x).train()
    first, second = aug(x).chunk(2)
    assert bool((first != second).all())
    assert not aug.plan.notes
    assert "gradients equal those of forward hooks" in str(
        ga.verify(aug, x)
    )  # on [x; x], with the same draws


class Noisy(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h)


def test_what_is_drawn_once_for_all_views_is_said() -> None:
    x = torch.randn(4, 4)
    for model, said in (
        (nn.Sequential(nn.Linear(4, 4), Noisy(), nn.Linear(4, 4), nn.Linear(4, 2)), "draws in '1'"),
        (Behind(lambda x, h: h + torch.randn_like(x)), "share what 'randn_like' draws"),
    ):
        site = "2" if isinstance(model, nn.Sequential) else "second"
        aug = ga.rewrite(model, site, rate=0.0, views=2, example_inputs=x).train()
        assert said in " ".join(aug.plan.notes)
        first, second = aug(x).chunk(2)
        assert torch.equal(first, second)


def test_what_both_sides_of_the_cut_use_is_made_once_or_refused() -> None:
    class Both(nn.Module):
        def __init__(self, table: Callable[[int], Tensor]) -> None:
            super().__init__()
            self.first, self.second, self.table = nn.Linear(4, 4), nn.Linear(4, 4), table

        def forward(self, x: Tensor) -> Tensor:
            noise = self.table(x.shape[0])
            return self.second(self.first(x + noise[:, None])) + noise[:, None]

    x = torch.randn(4, 4)
    aug = ga.rewrite(Both(torch.randn), "first", rate=0.0, views=2, example_inputs=x).train()
    assert "share what 'randn' draws" in " ".join(aug.plan.notes)
    first, second = aug(x).chunk(2)
    assert torch.equal(first, second)
    with pytest.raises(InvalidOption, match="each row's own number"):
        ga.rewrite(Both(torch.arange), "first", views=2, example_inputs=x)


class Counts(nn.Module):
    """Keeps something in every call, as counters and averages do."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], None], behind: bool) -> None:
        super().__init__()
        self.first, self.second, self.keep, self.behind = nn.Linear(4, 4), nn.Linear(4, 4), keep, behind
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if not self.behind:
            self.keep(self, x)
        h = self.first(x)
        if self.behind:
            self.keep(self, x)
        return self.second(h)


def counted(m: Any, x: Tensor) -> None:
    m.seen = m.seen + 1


def added(m: Any, x: Tensor) -> None:
    m.seen += 1


def averaged(m: Any, x: Tensor) -> None:
    m.mean = m.mean.lerp(torch.ones(4), 0.1)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("keep", [counted, added, averaged])
def test_counters_and_averages_go_on(keep: Callable[[nn.Module, Tensor], None], behind: bool) -> None:
    model, x = Counts(keep, behind), torch.randn(4, 4)
    twin = copy.deepcopy(model)
    aug = ga.rewrite(model, "first", rate=0.0, views=2, example_inputs=x).train()
    for _ in range(2):
        torch.testing.assert_close(aug(x), twin.train()(torch.cat([x, x])))
    for mine, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
