"""Skipped rows. Oracle: forward hooks that mask the branch's output of all rows, with the rows that were kept."""

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
import transformers
from networks import ConvNet, Mlp, TextNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AlreadyRewritten, InvalidOption, VerificationError
from graphaug.sparse.crossing import copied
from graphaug.surgery.called.kept_rows import KeptRows, put_back
from graphaug.surgery.rewritten.forward import compiled

pytestmark = pytest.mark.few(2)

TOKENS = torch.randint(20, (5, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.tensor([4, 6, 3, 5, 6])[:, None]).long()


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


class SequenceFirst(nn.Module):
    """Time first, a size read in the branch, a mask of the samples that enters it, and a BatchNorm before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.BatchNorm1d(6)
        self.inner, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = (tokens > 3).T.unsqueeze(-1).double()
        early = (tokens < 15).T.unsqueeze(-1).double()
        h = self.norm(self.embed(tokens)).transpose(0, 1)
        t, n, d = h.shape
        b = torch.tanh(self.inner(h)).reshape(t * n, d).view(t, n, d) * seen * early
        h = h + self.last(b)
        return self.head((h * seen).sum(0))


class Weighed(nn.Module):
    """Returns its weights beside its result, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.score(x).softmax(1)
        return self.out(x * weights), weights


class Residual(nn.Module):
    """One branch returns a tuple, and the input is added to the other's result in place."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.embed, self.attn, self.mlp = nn.Embedding(20, 8), Weighed(), nn.Linear(8, 8)
        self.reads = reads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        added, weights = self.attn(x)
        x = x + added
        if self.reads:
            x = x + weights
        out: Tensor = self.mlp(x)
        out += x
        return out.mean(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], dict[str, Tensor], int]] = {
    "vit": (
        vit,
        ["blocks.0.ls1", "blocks.1.drop_path1", "blocks.1.mlp"],
        {"x": torch.randn(5, 3, 32, 32).double()},
        0,
    ),
    "TextNet": (TextNet, ["blocks.0.out", "blocks.0.mlp", "blocks.2.mlp"], {"tokens": TOKENS}, 0),
    "bert": (
        bert,
        ["encoder.layer.0.attention.output.dropout", "encoder.layer.1.output.dropout"],
        {"input_ids": TOKENS, "attention_mask": MASK},
        0,
    ),
    "tuple and in place": (Residual, ["attn", "mlp"], {"tokens": TOKENS}, 0),
    "sequence first": (SequenceFirst, ["last"], {"tokens": TOKENS}, 1),
}
every = pytest.mark.parametrize(("make", "sites", "x", "dim"), MODELS.values(), ids=MODELS)


def step(model: nn.Module, x: dict[str, Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    out = model(**x)
    out = out if isinstance(out, Tensor) else out[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
    return out.detach(), list(
        torch.autograd.grad((out * weight).sum(), list(model.parameters()), allow_unused=True)
    )


def kept_rows(aug: nn.Module) -> list[Tensor]:
    return [m.kept for name, m in aug.named_children() if name.startswith("skip_rows")]


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@every
@pytest.mark.parametrize("rate", [0.4, 0.8])
def test_it_is_the_masked_form(
    make: Callable[[], nn.Module], sites: list[str], x: dict[str, Tensor], dim: int, rate: float
) -> None:
    torch.manual_seed(0)
    model = make().double()
    twin = copy.deepcopy(model)
    aug = ga.skip_rows(model, sites, rate, example_inputs=x)
    found = step(aug, x)
    kept = kept_rows(aug)
    assert [len(rows) for rows in kept] == [round((1 - rate) * 5)] * len(sites)

    def masked(rows: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (hook(module, args, out[0]), *out[1:])
            scale = torch.zeros(5, dtype=out.dtype).index_fill(0, rows, 5 / len(rows))
            return out * scale.view([-1 if i == dim else 1 for i in range(out.dim())])

        return hook

    for site, rows in zip(sites, kept, strict=True):
        twin.get_submodule(site).register_forward_hook(masked(rows))
    assert_equal(found, step(twin, x))
    plain = make().double().eval()
    plain.load_state_dict(twin.state_dict())
    assert torch.equal(step(aug.eval(), x)[0], step(plain, x)[0])
    assert list(aug.state_dict()) == list(model.state_dict())


@every
@pytest.mark.long
def test_the_branch_runs_on_the_kept_rows_only(
    make: Callable[[], nn.Module], sites: list[str], x: dict[str, Tensor], dim: int
) -> None:
    model = make().double()
    aug = ga.skip_rows(model, sites, 0.6, example_inputs=x)
    seen: dict[str, int] = {}
    for site in sites:
        aug.get_submodule(site).register_forward_hook(
            lambda m, a, out, site=site: seen.__setitem__(
                site, (out[0] if isinstance(out, tuple) else out).shape[dim]
            )
        )
    aug(**x)
    assert seen == dict.fromkeys(sites, 2)


@pytest.mark.long
def test_what_serves_the_branch_alone_is_skipped_with_it() -> None:
    aug = ga.skip_rows(vit(), "blocks.0.ls1", 0.6, example_inputs=torch.randn(5, 3, 32, 32))
    seen: list[int] = []
    aug.get_submodule("blocks.0.norm1").register_forward_hook(lambda m, a, out: seen.append(len(out)))
    aug(torch.randn(5, 3, 32, 32))
    assert seen == [2]
    assert "60% of the rows skip blocks.0.norm1, blocks.0.attn, blocks.0.ls1" in str(aug.plan)


def test_rows_are_drawn_uniformly_and_afresh() -> None:
    x = torch.randn(4, 3, 32, 32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch = model, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return h + self.branch(h)

    aug = ga.skip_rows(Block(), {"branch": 0.5}, example_inputs=x)
    counts = torch.zeros(4)
    for _ in range(400):
        aug(x)
        counts[aug.skip_rows.kept] += 1
    assert counts.sum() == 800
    assert (counts - 200).abs().max() < 4.5 * 10


@pytest.mark.slow
@pytest.mark.long
def test_compiled_whole_without_recompiles_and_copies() -> None:
    make, sites, x, _ = MODELS["TextNet"]
    aug = ga.skip_rows(make().double(), sites, 0.4, example_inputs=x)
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    step(compiled, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            torch.manual_seed(seed)
            found = step(compiled, x)
            rows = kept_rows(aug)
            torch.manual_seed(seed)
            assert_equal(found, step(aug, x))
            assert all(torch.equal(a, b) for a, b in zip(rows, kept_rows(aug), strict=True))
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        torch.manual_seed(1)
        assert_equal(step(twin, x), found)


class Counting(nn.Module):
    """Counts the rows that it sees, and gives back what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.shape[0]
        return x.clone()


class CountedBranch(nn.Module):
    """Of what the counter returns only a size is asked, so that nothing but a check of the graph reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.counter = nn.Linear(6, 6), nn.Linear(6, 6), Counting()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.counter(h).shape[-1] != 6:
            h = h * 2
        return x + self.last(h)


def test_a_module_that_is_called_for_what_it_keeps_sees_all_rows() -> None:
    model = CountedBranch()
    skipped = ga.skip_rows(model, "last", 0.5, example_inputs=torch.randn(8, 6))
    model.counter.seen.zero_()
    skipped(torch.randn(8, 6))
    assert model.counter.seen == 8


class Scaled(nn.Module):
    """What a branch returns goes on until it is added; no gradient passes beside whole blocks, where frozen."""

    def __init__(self, behind: nn.Module, frozen: bool = False) -> None:
        super().__init__()
        self.embed, self.norm, self.mlp = nn.Embedding(20, 8), nn.RMSNorm(8), nn.Linear(8, 8)
        self.behind, self.gamma, self.head = behind, nn.Parameter(torch.ones(8)), nn.Linear(8, 3)
        self.inner = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        self.embed.requires_grad_(not frozen)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.behind(self.gamma * self.mlp(self.norm(x)))
        x = self.inner(x) * x.size(1)
        out: Tensor = self.head(x.mean(1))
        return out


@pytest.mark.parametrize(
    ("model", "at", "x", "message"),
    [
        (ConvNet(), "layer1.0.conv2", torch.randn(4, 3, 8, 8), "couples the rows"),
        (Mlp(), "last", torch.randn(4, 4), "no residual branch"),
        (Scaled(nn.Dropout(0.1)), ["mlp", "behind"], TOKENS, "part in common"),
        (Residual(reads=True), "attn", TOKENS, "name the operation whose result is added"),
    ],
    ids=["BatchNorm", "chain", "twice", "tuple"],
)
@pytest.mark.long
def test_what_is_no_branch_of_independent_rows_is_refused(
    model: nn.Module, at: Any, x: Tensor, message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        ga.skip_rows(model, at, example_inputs=x)


@pytest.mark.parametrize(
    ("behind", "at", "goes"),
    [
        (nn.Dropout(0.1), "mlp", ""),
        (nn.Linear(8, 8, bias=False), "mlp", ""),
        (nn.RMSNorm(8), "mlp", ""),
        (nn.LayerNorm(8), "mlp", "'behind'"),
        (nn.LayerNorm(8), "behind", ""),
        (nn.Linear(8, 8), "mlp", "'behind'"),
        (nn.Dropout(0.1), "inner", "'head'"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_skipped_has_to_be_added_and_zeros_to_stay_zeros(
    behind: nn.Module, at: str, goes: str, frozen: bool
) -> None:
    model = Scaled(behind, frozen)
    before = [p.clone() for p in model.parameters()]
    if goes:
        with pytest.raises(InvalidOption, match=f"no residual branch: what it returns goes to {goes}"):
            ga.skip_rows(model, at, example_inputs=TOKENS)
    else:
        ga.verify(ga.skip_rows(model, at, example_inputs=TOKENS), TOKENS)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_layer_behind_a_frozen_embedding_is_no_branch() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, use_cache=False, **sizes)
    model = transformers.LlamaModel(config)
    model.embed_tokens.requires_grad_(False)
    with pytest.raises(InvalidOption, match="no residual branch"):
        ga.skip_rows(model, "layers.1", example_inputs={"input_ids": TOKENS})


@pytest.mark.long
def test_bad_rates_and_other_verbs_are_refused() -> None:
    net = TextNet()
    for rate, message in ((1.0, "every row"), (-0.1, "outside"), ("0.5", "no number")):
        with pytest.raises(InvalidOption, match=message):
            ga.skip_rows(net, "blocks.0.mlp", rate, example_inputs=TOKENS)
    aug = ga.skip_rows(net, "blocks.0.mlp", example_inputs=TOKENS)
    with pytest.raises(AlreadyRewritten, match=r"graphaug\.skip_rows made"):
        ga.rewrite(aug, "blocks.1")
    for made in (aug, ga.rewrite(net, "blocks.0", example_inputs=TOKENS)):
        with pytest.raises(AlreadyRewritten, match=r"skip_rows would lose it"):
            ga.skip_rows(made, "blocks.1.mlp", example_inputs=TOKENS)
    assert ga.strip(aug) is net


# --- verified ----------------------------------------------------------------------------------------


@every
@pytest.mark.long
def test_verify_proves_it(
    make: Callable[[], nn.Module], sites: list[str], x: dict[str, Tensor], dim: int
) -> None:
    torch.manual_seed(0)
    aug = ga.skip_rows(make().double(), sites, 0.4, example_inputs=x)
    state = {name: value.clone() for name, value in aug.state_dict().items()}
    torch.manual_seed(9)
    before = torch.get_rng_state()
    claims = ga.verify(aug, x, tolerance=1e-9).claims
    assert claims[0] == "eval mode: output bit-equal to the original"
    assert claims[1:-1] == tuple(f"'{site}': 3 of 5 rows kept, each once, at rate 0.4" for site in sites)
    assert claims[-1].endswith("equal those of forward hooks that mask the branches of all rows")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in aug.state_dict().items())
    assert all(m.training for m in aug.modules())


class Operation(nn.Module):
    """The branch ends in an operation, which has no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + torch.tanh(self.branch(x)))


def test_verify_interprets_where_no_hook_reaches() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    aug = ga.skip_rows(Operation().double(), "tanh", 0.4, example_inputs=x)
    assert ga.verify(aug, x, tolerance=1e-9).claims[-1].endswith("with every branch on all rows, masked")


@pytest.mark.long
def test_verify_finds_wrong_rows_and_wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    aug = ga.skip_rows(TextNet(), "blocks.0.mlp", 0.4, example_inputs=TOKENS)
    ga.verify(aug, TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "draw", lambda self, rows, device: torch.zeros(3, dtype=torch.long))
        with pytest.raises(VerificationError, match=r"'blocks.0.mlp': 1 of 5 rows are kept, planned were 3"):
            ga.verify(aug, TOKENS)

    def unscaled(part: Tensor, kept: Tensor, whole: Tensor, *ends: Any) -> Tensor:
        return put_back(part, kept, whole, *ends) * len(kept) / 5

    graph, _ = copied(aug._parts.training_graph)
    next(n for n in graph.nodes if n.target is put_back).target = unscaled
    type(aug)._forward_training = compiled(graph, ga.AugmentedModule, aug._aliases)
    with pytest.raises(VerificationError, match=r"differs .* from that of forward hooks that mask"):
        ga.verify(aug, TOKENS)


def test_the_example_of_the_docstring_runs() -> None:
    results = doctest.testmod(importlib.import_module("graphaug.skip"))
    assert (results.failed, results.attempted > 1) == (0, True)


class Branch(nn.Module):
    """A linear layer whose rows meet if it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.centred = nn.Linear(6, 6), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h - h.mean(0) if self.centred else h


class OneBranch(nn.Module):
    """A residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = Branch(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.branch(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.branch, "centred", True),
        lambda m: setattr(m.branch, "linear", nn.BatchNorm1d(6)),
        lambda m: setattr(m, "branch", nn.BatchNorm1d(6)),
        lambda m: setattr(m.branch, "forward", m.branch.linear.forward),
    ],
    ids=["a switch", "a module inside", "the branch", "a method"],
)
@pytest.mark.parametrize("form", ["eager", "compiled", "a copy"])
def test_a_branch_that_has_changed_is_no_longer_run(change: Callable[[Any], Any], form: str) -> None:
    """Nothing is proved of it; and there is no form that skips nothing."""
    torch._dynamo.reset()
    skipped, x = ga.skip_rows(OneBranch(), "branch", example_inputs=torch.randn(8, 6)), torch.randn(8, 6)
    skipped = copy.deepcopy(skipped) if form == "a copy" else skipped
    run = torch.compile(skipped, fullgraph=True, backend="eager") if form == "compiled" else skipped
    if form != "compiled":
        run(x)
    skipped.original.head = nn.Linear(6, 2)  # behind the branch
    change(skipped.original)
    with pytest.raises(Exception, match="since skip_rows, and of that nothing is proved"):
        run(x)
    skipped.eval()(x)


class Doubled(Branch):
    """A branch that asks for its mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 if self.training else 2)


@pytest.mark.parametrize(
    "copied", [lambda aug: aug, copy.deepcopy, lambda aug: pickle.loads(pickle.dumps(aug))]
)
def test_hooks_and_a_part_in_eval_mode_are_no_change(copied: Callable[[Any], Any]) -> None:
    model = OneBranch()
    model.branch = Doubled()
    skipped = copied(ga.skip_rows(model, "branch", example_inputs=torch.randn(8, 6)))
    skipped.original.branch.register_forward_hook(lambda *_: None)
    skipped.original.branch.eval()
    skipped(torch.randn(8, 6))
