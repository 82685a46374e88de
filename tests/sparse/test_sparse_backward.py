"""The sparse backward: the same loss and gradients as the dense one, less work, and every reason against it."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torchvision
from gloo import group_of_two
from networks import Checkpointed, TextNet, tokens
from torch import Tensor, nn

import graphaug as ga
import graphaug.sparse
from graphaug.errors import InvalidOption, SparseBackwardError, VerificationError

pytestmark = pytest.mark.few(2)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


# --- the same rows and the same noise on both sides -----------------------------------------------


class Draw:
    """Rows and noise of one step, drawn once and imposed on any augmentation of the same site."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: Tensor | None = None
        self.noise: Tensor | None = None

    @contextlib.contextmanager
    def imposed(self, aug: Any) -> Iterator[None]:
        (node,) = aug.augmentations.values()

        def draw_rows(count: int, device: Any) -> Tensor:
            if self.rows is None:
                together = 2 if node.pairing == "together" else 1
                samples = count // together
                eligible = samples // 2 if node.pairing == "one-sided" else samples
                order = torch.randperm(eligible, generator=self.generator)
                rows = torch.zeros(samples, dtype=torch.bool)
                rows[order[: round(float(node.subset) * samples)]] = True
                self.rows = torch.cat([rows] * together)
            return self.rows

        def draw_noise(h: Tensor) -> Tensor:
            count = len(self.rows)
            if self.noise is None:
                shape = [count if i == 0 else n for i, n in enumerate(noise_shape(h.shape, node.granularity))]
                kept = torch.rand(shape, generator=self.generator) >= float(node.rate)
                self.noise = kept / max(1 - float(node.rate), 1e-9)
            return (self.noise if h.shape[0] == count else self.noise[self.rows]).to(h)

        node.draw_rows, node.draw_noise = draw_rows, draw_noise
        try:
            yield
        finally:
            del node.draw_rows, node.draw_noise


def noise_shape(shape: Any, granularity: str) -> tuple[int, ...]:
    channel = 1 if len(shape) > 3 else len(shape) - 1
    if granularity == "element":
        return tuple(shape)
    keep = {0, channel} if granularity == "channel" else set(range(len(shape))) - {channel}
    return tuple(n if i in keep else 1 for i, n in enumerate(shape))


def outputs(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = list(value.values()) if hasattr(value, "values") else list(value)
    return [t for v in values if v is not None for t in outputs(v)]


def step(aug: nn.Module, x: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss (a fixed projection of all outputs) and gradients; buffers stay."""
    found = [t for t in outputs(aug(**x)) if t.requires_grad]
    generator = torch.Generator().manual_seed(5)
    loss = torch.stack(
        [(t * torch.randn(t.shape, generator=generator).to(t)).sum().double() for t in found]
    ).sum()
    named = {n: p for n, p in aug.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, grads, strict=True))


def compare(aug: ga.AugmentedModule, x: dict[str, Any], tolerance: float = 1e-10, seed: int = 0) -> None:
    """One step sparse and one dense, with what was drawn for one imposed on both."""
    assert aug.plan.backward == "sparse", aug.plan.reason
    draw = Draw(seed)
    with draw.imposed(aug):
        with aug.dense():
            expected, theirs = step(aug, x)
        found, mine = step(aug, x)
    scale = max(float(g.abs().max()) for g in theirs.values() if g is not None)
    assert abs(found - expected) <= tolerance * max(abs(expected), 1)
    for name, a in mine.items():
        b = theirs[name]
        if a is None or b is None:  # a row of the prefix that was not there, or is all zeros
            assert a is b is None or not bool((a if b is None else b).any()), name
        else:
            assert float((a - b).abs().max()) <= tolerance * scale, name


def quiet(model: nn.Module) -> nn.Module:
    """No dropout of the model's own: two runs of the prefix would draw it differently than one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ in ("StochasticDepth", "DropPath"):
            for name in ("p", "drop_prob"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
    return model.train()


# --- real architectures ---------------------------------------------------------------------------


def vit() -> Any:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2, num_classes=5
    )
    return model, {"x": torch.randn(6, 3, 32, 32)}, ("patch_embed", "blocks.0", "blocks.1", "norm")


def bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ids = torch.randint(5, 50, (6, 7))
    inputs = {"input_ids": ids, "attention_mask": padding(), "token_type_ids": (ids > 20).long()}
    return BertModel(config), inputs, ("embeddings", "encoder.layer.0", "encoder.layer.2")


def padding(rows: int = 6) -> Tensor:
    return (torch.arange(7) < torch.tensor([7, 3, 7, 5, 2, 7])[:rows, None]).long()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(5, 50, (6, 7))
    return (
        GPT2LMHeadModel(config),
        {"input_ids": ids, "attention_mask": padding()},
        ("transformer.h.0", "transformer.h.1"),
    )


def llama() -> Any:
    """Its tables of rotary embeddings go to every block, as a tuple."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(5, 50, (6, 7)), "attention_mask": padding()}
    return LlamaModel(config), inputs, ("embed_tokens", "layers.0", "layers.1")


def modernbert() -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(5, 50, (6, 7)), "attention_mask": padding()}
    return ModernBertModel(config), inputs, ("embeddings", "layers.0", "layers.1")


def convnext() -> Any:
    blocks = torchvision.models.convnext.CNBlockConfig
    model = torchvision.models.ConvNeXt([blocks(8, 12, 1), blocks(12, None, 2)], num_classes=5)
    for p in model.parameters():  # a layer scale of 1e-6 would hide the blocks
        if p.dim() == 3:
            nn.init.ones_(p)
    return model, {"x": torch.randn(5, 3, 32, 32)}, ("features.0", "features.2", "features.3.1")


def swin() -> Any:
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=5)
    return model, {"x": torch.randn(4, 3, 32, 32)}, ("features.1", "features.3.0")


def vision_transformer() -> Any:
    model = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model, {"x": torch.randn(4, 3, 16, 16)}, ("conv_proj", "encoder.layers.encoder_layer_0", "encoder")


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (vit, bert, gpt2, llama, modernbert, convnext, swin, vision_transformer)
}
OPTIONS: list[dict[str, Any]] = [
    {"subset": 0.5, "rate": 0.5},
    {"subset": 0.25, "rate": 0.9, "granularity": "channel"},
    {"subset": 0.75, "rate": 0.1, "granularity": "position"},
    {"subset": 0.34, "rate": 0.3, "pairing": "one-sided"},
    {"subset": 0.6, "rate": 0.4, "pairing": "together"},
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_dense_backward(name: str) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm and transformers about themselves
        model, x, cuts = ARCHITECTURES[name]()
        quiet(model).double()
        x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
        for i, cut in enumerate(cuts):
            options = OPTIONS[i % len(OPTIONS)]
            if options.get("pairing") and len(next(iter(x.values()))) % 2:
                options = OPTIONS[0]
            aug = ga.rewrite(model, cut, stop_grad=True, backward="sparse", example_inputs=x, **options)
            compare(aug, x, seed=i)


def bert_case(**options: Any) -> tuple[ga.AugmentedModule, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, x, _ = bert()
    options = {"subset": 0.5, "stop_grad": True, "example_inputs": x, **options}
    return ga.rewrite(quiet(model).double(), "encoder.layer.1", **options), x


@pytest.mark.long
def test_masks_that_hide_nothing_in_one_half_or_in_all() -> None:
    """transformers drops a mask of ones: what is None for one call is a tensor in the next."""
    for rows in ([0, 2, 5, 0], [1, 3, 4, 1], [0, 1, 2, 3, 4, 5]):
        aug, x = bert_case()
        compare(aug, {k: v[rows] for k, v in x.items()}, seed=len(rows))
    aug, x = bert_case()
    compare(aug, {**x, "attention_mask": torch.ones_like(x["attention_mask"])})


@pytest.mark.long
def test_an_auto_choice_of_a_real_model_is_sparse_and_says_so() -> None:
    plan = bert_case()[0].plan
    assert plan.backward == "sparse"
    assert plan.reason.startswith("rows proved independent; prefix ")
    assert "floor of the step 0." in plan.reason
    assert "backward  sparse: rows proved independent" in str(plan)


# --- a small network, for all the rest --------------------------------------------------------------


def text(**options: Any) -> tuple[ga.AugmentedModule, dict[str, Tensor]]:
    torch.manual_seed(0)
    options = {"subset": 0.5, "stop_grad": True, "backward": "sparse", "example_inputs": tokens(8), **options}
    return ga.rewrite(TextNet().double(), options.pop("at", "blocks.1"), **options), {"tokens": tokens(8)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.long
def test_a_seed_draws_the_same_rows_sparse_and_dense(seed: int) -> None:
    aug, x = text(rate=1.0)
    # all dropped, nothing random but the rows
    torch.manual_seed(seed)
    found, mine = step(aug, x)
    torch.manual_seed(seed)
    with aug.dense():
        expected, theirs = step(aug, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, a in mine.items():
        torch.testing.assert_close(a, theirs[name], rtol=1e-10, atol=1e-12, msg=name)
    torch.manual_seed(seed)
    again, _ = step(aug, x)
    assert torch.equal(found, again)


@pytest.mark.parametrize("rows", [2, 3, 5, 7])
@pytest.mark.parametrize("subset", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.long
def test_any_batch_and_any_count(rows: int, subset: float) -> None:
    aug, _ = text(subset=subset)
    compare(aug, {"tokens": tokens(rows)})
    _, grads = step(aug, {"tokens": tokens(rows)})
    counted = round(subset * rows)
    # by rounding alone, of a small batch, no parameter is left without a gradient
    assert (grads["embed.weight"] is None) == (subset == 1)
    assert counted < rows or subset == 1 or not grads["embed.weight"].any()
    assert grads["head.weight"] is not None


def test_a_batch_that_is_stopped_whole_by_rounding_still_has_gradients() -> None:
    """DistributedDataParallel and weight decay would miss a parameter that has none."""
    aug, x = text(subset=0.9)
    few = {k: v[:4] for k, v in x.items()}
    aug(**few).sum().backward()
    for name, p in aug.named_parameters():
        assert p.grad is not None, name
    compare(aug, few)


def test_images_stay_in_their_memory_format(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    seen = tmp_path / "formats"  # a list would be state that the prefix keeps

    def note(_: nn.Module, args: Any) -> None:
        with seen.open("a") as file:
            print(args[0].is_contiguous(memory_format=torch.channels_last), file=file)

    for i in (0, 2):  # before rewriting: a hook that comes later makes the step dense
        model[i].register_forward_pre_hook(note)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse", aug.plan.reason
    seen.write_text("")
    aug(x)
    assert seen.read_text().split() == ["True"] * 3


@pytest.mark.filterwarnings("ignore:.*autocast.*:UserWarning")
@pytest.mark.long
def test_a_model_can_be_rewritten_under_autocast() -> None:
    torch.manual_seed(0)
    model, x, _ = bert()
    quiet(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.eval()(**x).last_hidden_state
        aug = ga.rewrite(model.train(), "encoder.layer.1", stop_grad=True, example_inputs=x)
        assert aug.plan.backward == "sparse", aug.plan.reason
        assert torch.equal(model.eval()(**x).last_hidden_state, expected)


def test_subset_zero_is_the_plain_model() -> None:
    aug, x = text(subset=0.0)
    found, expected = step(aug, x), step(aug.original.train(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_set_subset_and_set_rate_act_on_the_next_step() -> None:
    aug, x = text()
    for subset, rate in ((0.25, 0.2), (1.0, 0.5), (0.0, 0.9), (0.75, 0.0)):
        aug.set_subset(subset)
        aug.set_rate(rate)
        compare(aug, x)


def test_the_stopped_rows_are_the_drawn_ones() -> None:
    """The gradient of each row of the input says whether it was stopped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(9, 4, requires_grad=True)
    aug = ga.rewrite(model, "1", subset=1 / 3, stop_grad=True, backward="sparse", example_inputs=x.detach())
    for seed in range(5):
        torch.manual_seed(seed)
        rows = aug.deep_augment.draw_rows(9, x.device)
        torch.manual_seed(seed)
        (gradient,) = torch.autograd.grad(aug(x).square().sum(), x)
        assert torch.equal((gradient == 0).all(1), rows)
        assert int(rows.sum()) == 3


def test_eval_mode_and_grad_mode_are_left_alone() -> None:
    aug, x = text()
    aug.eval()
    assert torch.equal(aug(**x), aug.original(**x))
    aug.train()
    with torch.no_grad():
        assert not aug(**x).requires_grad
    aug(tokens(1))[0].sum().backward()  # the last batch of an epoch
    assert torch.is_grad_enabled()
    with pytest.raises(IndexError):
        aug(tokens(4) + 100)
    assert torch.is_grad_enabled()


@pytest.mark.long
def test_frozen_parts() -> None:
    torch.manual_seed(0)
    model = TextNet().double()
    model.embed.requires_grad_(False)
    options: dict[str, Any] = {"stop_grad": True, "example_inputs": tokens(8)}
    compare(ga.rewrite(model, "blocks.1", backward="sparse", **options), {"tokens": tokens(8)})
    after = ga.rewrite(model, "blocks.1", freeze="after", **options)
    compare(after, {"tokens": tokens(8)})
    ga.strip(after)
    before = ga.rewrite(model, "blocks.1", freeze="before", **options)
    assert before.plan.backward == "dense"
    assert "nothing before the cut is trained" in before.plan.reason
    ga.strip(before)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    assert "nothing before the cut is trained" in ga.rewrite(model, "blocks.1", **options).plan.reason


class Shares(nn.Module):
    """One linear layer on both sides of the cut, and without gradient for a mask of the suffix."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.cut, self.last = (
            nn.Linear(8, 8),
            nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.mix(x) > 0).detach()
        h = self.cut(torch.tanh(self.mix(x)))
        return self.last(self.mix(h) * mask)


@pytest.mark.parametrize("subset", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("build", [TextNet, Shares])
@pytest.mark.long
def test_autocast_keeps_the_gradient_of_every_weight(build: Any, subset: float) -> None:
    """A weight cast without grad is cached by autocast, and would serve the rows with gradient too."""
    torch.manual_seed(0)
    model, at = (build(), "blocks.1") if build is TextNet else (build(), "cut")
    x = {"tokens": tokens(8)} if build is TextNet else {"x": torch.randn(8, 8)}
    aug = ga.rewrite(model, at, subset=subset, stop_grad=True, backward="sparse", example_inputs=x)
    with torch.autocast("cpu", torch.bfloat16):
        compare(aug, x, tolerance=0.03)
        _, mine = step(aug, x)
    reached = {n for n, g in mine.items() if g is not None and bool(g.any())}
    behind = {"head.weight"} if build is TextNet else {"mix.weight", "last.weight"}
    assert reached == set(mine) if subset < 1 else behind <= reached


def test_gradients_accumulate() -> None:
    aug, _ = text()
    batches = [tokens(6, seed=s) for s in (1, 2)]

    def accumulated() -> list[Tensor]:
        aug.zero_grad()
        for i, x in enumerate(batches):
            with Draw(i).imposed(aug):
                aug(x).square().sum().backward()
        return [p.grad.clone() for p in aug.parameters()]

    found = accumulated()
    with aug.dense():
        expected = accumulated()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_checkpointed_modules() -> None:
    torch.manual_seed(0)
    model = TextNet().double()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = Checkpointed(block)
    aug = ga.rewrite(model, "blocks.1", stop_grad=True, backward="sparse", example_inputs=tokens(8))
    compare(aug, {"tokens": tokens(8)})


def saved_bytes(aug: nn.Module, x: dict[str, Tensor]) -> int:
    own = {p.data_ptr() for p in aug.parameters()}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = aug(**x)
    assert out.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("subset", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.long
def test_less_is_saved_for_the_backward(subset: float) -> None:
    aug, x = text(subset=subset, at="blocks.2")
    share = aug.plan.sites[0].flops_before
    assert share > 0.9
    with aug.dense():
        dense = saved_bytes(aug, x)
    # the index of the rows and the rows at the cut are saved anew, hence the tenth
    assert saved_bytes(aug, x) <= dense * (1 - 0.9 * subset * share) + 0.05 * dense


# --- copies, strip, verify --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.long
def test_a_copy_is_sparse_and_computes_the_same(how: str) -> None:
    aug, x = text()
    twin = copy.deepcopy(aug) if how == "deepcopy" else pickle.loads(pickle.dumps(aug))
    assert twin.plan == aug.plan
    results = []
    for model in (aug, twin):
        torch.manual_seed(0)
        results.append(step(model, x))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    twin.set_subset(0.25)
    compare(twin, x)
    assert list(twin.state_dict()) == list(aug.original.state_dict())


def test_strip_verify_and_state_dict_are_as_ever() -> None:
    aug, x = text()
    model = aug.original
    claims = str(ga.verify(aug, x))
    assert "training mode (sparse;" in claims
    assert "no gradient of augmented rows below the cut" in claims
    assert list(aug.state_dict()) == list(model.state_dict())
    assert ga.strip(aug) is model
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.long
def test_verify_takes_rounding_for_rounding(name: str) -> None:
    """The gradient of an attention's key bias is 0 but for the rounding of large terms that cancel."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm and transformers about themselves
        model, x, cuts = ARCHITECTURES[name]()
        aug = ga.rewrite(model.train(), cuts[1], stop_grad=True, example_inputs=x)
        assert aug.plan.backward == "sparse", aug.plan.reason
        ga.verify(aug, x)


def test_verify_finds_a_wrong_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come back to other places."""
    aug, x = text()
    take = graphaug.sparse.run.take
    monkeypatch.setattr(
        graphaug.sparse.run, "take", lambda v, d, rows, count: take(v, d, rows.flip(0), count)
    )
    with pytest.raises(VerificationError, match="differs by"):
        ga.verify(aug, x)


@pytest.mark.long
def test_the_dense_block_is_dense_and_ends() -> None:
    aug, x = text()
    with aug.dense():
        dense = saved_bytes(aug, x)
    assert saved_bytes(aug, x) < dense
    with contextlib.suppress(ValueError), aug.dense():
        raise ValueError
    assert saved_bytes(aug, x) < dense


# --- compiled, distributed --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.long
def test_compiled_without_a_break_or_a_recompile(backend: str) -> None:
    torch._dynamo.reset()
    aug, x = text(rate=1.0)
    aug.float()
    with Draw().imposed(aug):
        _, expected = step(aug, x)
        compiled = torch.compile(aug, fullgraph=True, backend=backend)
        _, found = step(compiled, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()
    aug.zero_grad()
    compiled = torch.compile(aug, fullgraph=True, backend=backend)
    step(compiled, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
            aug.set_rate(rate)
            loss, grads = step(compiled, x)
            assert torch.isfinite(loss)
            assert all(bool(g.any()) for g in grads.values())
    if backend == "aot_eager":
        for subset in (0.25, 0.0, 1.0):  # other shapes: other programs
            aug.set_subset(subset)
            assert torch.isfinite(step(compiled, x)[0])
        compiled.eval()
        torch.testing.assert_close(compiled(**x), aug.original(**x))
    torch._dynamo.reset()


def _train_in_a_group(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    with group_of_two(rank, folder):
        results = []
        for kind in ("sparse", "dense"):
            aug, _ = text()
            ddp = nn.parallel.DistributedDataParallel(aug)
            with Draw(rank).imposed(aug), aug.dense() if kind == "dense" else contextlib.nullcontext():
                for s in range(2):
                    ddp(tokens(6, seed=10 * rank + s)).square().sum().backward()
            results.append([p.grad for p in aug.parameters()])
        torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.long
@pytest.mark.slow
def test_data_parallel_in_two_processes(tmp_path: Path) -> None:
    mp.spawn(_train_in_a_group, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for sparse, dense, other in zip(*first, second[0], strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-12)
        assert torch.equal(sparse, other)


# --- the decision -----------------------------------------------------------------------------------


class Leaks(nn.Module):
    """Reads the batch size into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * float(int(x.shape[0]))
        return self.last(torch.tanh(h))


class Skips(nn.Module):
    """A differentiable way round ``second``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.second(x) + x)


class Transposes(nn.Module):
    """Rows in dimension 1 at the cut, as recurrent code has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cut, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cut(self.first(x)[None])[0])


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


class Doubtful(nn.Module):
    """Each entry times its rank in its row, by an operation that no rule follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        ranks = torch.searchsorted(h.detach().sort(1).values, h.detach().contiguous())
        return self.head(self.last(h * ranks))


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
DENSE: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "stop_grad off": (chain, "1", {"stop_grad": False}, "stop_grad is off"),
    "two sites": (chain, ["0", "1"], {}, "there are 2 sites"),
    "bernoulli": (chain, "1", {"sampling": "bernoulli"}, "sampling='exact' a fixed one"),
    "no example": (Doubtful, "last", {"example_inputs": None}, "would cost 50% of the prefix once more"),
    "bypass": (Skips, "second", {"allow_bypass": True}, "the cut does not separate"),
    "frozen": (lambda: chain().requires_grad_(False), "1", {}, "nothing before the cut is trained"),
    "input": (chain, "input", {}, "nothing before the cut is trained"),
    "size read": (Leaks, "first", {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_every_reason_stands_in_the_plan_and_in_the_error(name: str) -> None:
    build, at, options, said = DENSE[name]
    options = {"subset": 0.5, "stop_grad": True, "example_inputs": X, **options}
    plan = ga.rewrite(build(), at, **options).plan
    assert plan.backward == "dense"
    assert said in plan.reason
    assert f"dense: {plan.reason}" in str(plan)
    with pytest.raises(SparseBackwardError, match="Use ") as error:
        ga.rewrite(build(), at, backward="sparse", **options)
    assert plan.reason in str(error.value)
    first = at if isinstance(at, str) else at[0]
    assert f"backward='sparse' is not possible at '{first}'" in str(error.value)


@pytest.mark.long
def test_what_only_a_proof_can_tell_is_sparse() -> None:
    """Rows that do not lie in dimension 0 at the cut, and a model that nothing can be computed with."""
    for model, at, x in ((Transposes(), "cut", X), (chain().to("meta"), "1", X.to("meta"))):
        plan = ga.rewrite(model, at, stop_grad=True, backward="proved", example_inputs=x).plan
        assert plan.reason.startswith("rows proved independent")


@pytest.mark.long
def test_a_batch_norm_is_a_reason_for_auto_only() -> None:
    options: dict[str, Any] = {"subset": 0.5, "stop_grad": True, "example_inputs": X}
    plan = ga.rewrite(normed(), "2", **options).plan
    assert plan.backward == "dense"
    assert "BatchNorm1d '1' couples the rows by its batch statistics" in plan.reason
    assert ga.rewrite(normed(), "2", backward="sparse", **options).plan.backward == "sparse"


def test_too_small_a_saving_is_a_reason_for_auto_only() -> None:
    options: dict[str, Any] = {"subset": 0.1, "stop_grad": True, "example_inputs": X}
    plan = ga.rewrite(chain(), "1", **options).plan
    assert plan.backward == "dense"
    assert "it would save the backward of 4% of the FLOPs only" in plan.reason
    aug = ga.rewrite(chain().double(), "1", backward="sparse", **{**options, "example_inputs": X.double()})
    compare(aug, {"input": X.double()})


def test_dense_is_what_was_asked_for() -> None:
    plan = ga.rewrite(chain(), "1", stop_grad=True, backward="dense", example_inputs=X).plan
    assert (plan.backward, plan.reason) == ("dense", "asked for")


@pytest.mark.long
def test_a_dry_run_shows_the_same_decision_and_leaves_no_trace() -> None:
    model = normed()
    state = copy.deepcopy(model.state_dict())
    for backward in ("auto", "sparse", "dense"):
        options: dict[str, Any] = {"stop_grad": True, "backward": backward, "example_inputs": X}
        plan = ga.rewrite(model, "2", dry_run=True, **options)
        assert plan.backward == ga.rewrite(model, "2", **options).plan.backward
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_bad_input() -> None:
    with pytest.raises(InvalidOption, match=r"backward='sprase' is unknown\. Did you mean 'sparse'"):
        ga.rewrite(chain(), "1", backward="sprase")
    with pytest.raises(InvalidOption, match="backward=None is unknown"):
        ga.rewrite(chain(), "1", backward=None)  # type: ignore[call-overload]
    with pytest.raises(SparseBackwardError, match="sampling='exact'"):
        ga.rewrite(chain(), "1", stop_grad=True, backward="sparse", sampling="bernoulli", example_inputs=X)
    with pytest.raises(ga.GraphaugError, match=r"'second' does not separate .* 'add' also receives 'first'"):
        ga.rewrite(Skips(), "second", stop_grad=True, backward="sparse", example_inputs=X)
    bypassed: dict[str, Any] = {"allow_bypass": True, "stop_grad": True, "example_inputs": X}
    with pytest.raises(SparseBackwardError, match="'add' also receives 'first'"):
        ga.rewrite(Skips(), "second", backward="sparse", **bypassed)


# --- what a user's code or hand may do ----------------------------------------------------------------


class SwitchesOn(nn.Module):
    """Computes with gradients wherever it is called, as force fields do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.fc(x)


def small(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), middle or nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("subset", [0.5, 1.0])
def test_stopped_rows_stop_where_a_module_switches_gradients_on(subset: float) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = small(SwitchesOn())
    options = {"rate": 0.0, "subset": subset, "stop_grad": True, "example_inputs": x}
    aug = ga.rewrite(model, "1", backward="sparse", **options)
    (node,) = aug.augmentations.values()
    rows = torch.arange(8) < round(8 * subset)
    node.__dict__["draw_rows"] = lambda count, device: rows
    grads = torch.autograd.grad(aug(x).sum(), list(model[1].parameters()), allow_unused=True)
    if subset == 1.0:
        assert grads == (None, None)
        return
    upstream = model[3].weight.sum(0) @ model[2].weight  # of every row that is not stopped
    torch.testing.assert_close(grads[1], upstream * int((~rows).sum()))


@pytest.mark.parametrize("how", ["eval", "stop_grad"])
def test_an_augmentation_that_is_switched_off_by_hand_is_off(how: str) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    aug = ga.rewrite(small(), "1", rate=0.0, stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse"
    model = aug.original
    (node,) = aug.augmentations.values()
    if how == "eval":
        node.eval()
    else:
        node.stop_grad = False
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(aug(x).sum(), list(model.parameters()))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_norms_with_hooks_are_not_run_in_two_streams() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    handle = model[1].register_forward_hook(lambda *_: None)
    x = torch.randn(8, 4)
    with pytest.raises(SparseBackwardError, match=r"BatchNorm1d '1' .* has hooks"):
        ga.rewrite(model, "2", stop_grad=True, backward="sparse", example_inputs=x)
    handle.remove()
    assert (
        ga.rewrite(model, "2", stop_grad=True, backward="sparse", example_inputs=x).plan.backward == "sparse"
    )


@pytest.mark.parametrize("how", ["hook", "type"])
def test_norms_that_are_changed_behind_the_rewriting_are_refused(how: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    x = torch.randn(8, 4)
    aug = ga.rewrite(model, "2", stop_grad=True, backward="sparse", example_inputs=x)
    aug(x)
    if how == "hook":
        model[1].register_forward_hook(lambda *_: None)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(aug)
    with pytest.raises(SparseBackwardError, match=r"since the model was rewritten"):
        aug(x)


WRITTEN: dict[str, Callable[[Tensor], Any]] = {
    "out=": lambda h: torch.mul(h.detach(), 2, out=h.detach()),
    "out= of two": lambda h: torch.max(
        h.detach() + 0, 1, out=(h.detach()[:, 0], torch.zeros(len(h), dtype=torch.long))
    ),
    "a detached view": lambda h: h.detach().add_(1),
    "a flat view": lambda h: h.detach().ravel().add_(1),
    "a swapped view": lambda h: h.detach().swapaxes(0, 1).add_(1),
    "a part": lambda h: h.detach().tensor_split(2)[0].add_(1),
}


class WritesBehind(nn.Module):
    """Writes into what lies at the cut, behind it, and drops what comes of that."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.head, self.write = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 2),
            write,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        self.write(h)
        return self.head(h)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_into_the_value_at_the_cut_is_there(name: str) -> None:
    """Rate 0 on all rows leaves the value as it is: the output is the model's."""
    model, x = WritesBehind(WRITTEN[name]), torch.randn(6, 4)
    expected = copy.deepcopy(model)(x)
    options = {"at": "second", "rate": 0.0, "subset": 0.5, "stop_grad": True, "example_inputs": x}
    torch.testing.assert_close(ga.rewrite(copy.deepcopy(model), **options)(x), expected)
    try:
        sparse = ga.rewrite(model, backward="sparse", **options)
    except SparseBackwardError:
        return
    torch.testing.assert_close(sparse(x), expected)
