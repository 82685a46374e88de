"""Dropped tokens: the suffix run by hand on the kept ones, with masks, positions and lengths picked row by row."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import graphaug as ga
from graphaug.augment.transform import Needs, Transform
from graphaug.errors import InvalidOption, VerificationError
from graphaug.sparse.crossing import copied
from graphaug.surgery.called.tokens import followed
from graphaug.surgery.rewritten.forward import compiled

TOKENS = torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2, [1] * 2 + [0] * 7])
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES[0, :, 4:8], IMAGES[2, :, :, 8:] = 0, 0  # patches with nothing in them


def pick(value: Tensor, kept: Tensor, *dims: int) -> Tensor:
    """Of every row the kept entries along some dimensions."""
    rows = []
    for row, index in zip(value.expand(len(kept), *value.shape[1:]), kept, strict=True):
        for dim in dims:
            row = row.index_select(dim - 1, index)
        rows.append(row)
    return torch.stack(rows)


def bert(attention: str) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **sizes, **quiet)
    config._attn_implementation = attention
    return transformers.BertModel(config, add_pooling_layer=False)


def bert_by_hand(model: Any, kept: Callable[[Tensor], Tensor]) -> Tensor:
    h = model.encoder.layer[0](model.embeddings(TOKENS), additive(MASK))
    h = h[0] if isinstance(h, tuple) else h
    index = kept(h)
    h, mask = pick(h, index, 1), additive(pick(MASK, index, 1))
    for layer in model.encoder.layer[1:]:
        h = layer(h, mask)
        h = h[0] if isinstance(h, tuple) else h
    return h


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.LlamaModel(transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes))


def llama_by_hand(model: Any, kept: Callable[[Tensor], Tensor]) -> Tensor:
    """The two entries of the rotary positions follow by themselves, and are handed on as one tuple."""
    h = model.embed_tokens(TOKENS)
    turned = model.rotary_emb(h, position_ids=torch.arange(TOKENS.shape[1])[None])
    seen = torch.ones(9, 9).tril().bool() & MASK.bool()[:, None, None, :]
    h = model.layers[0](h, position_embeddings=turned, attention_mask=seen)
    index = kept(h)
    h, seen = pick(h, index, 1), pick(seen, index, 2, 3)
    for layer in model.layers[1:]:
        turned_there = tuple(pick(t, index, 1) for t in turned)
        h = layer(h, position_embeddings=turned_there, attention_mask=seen)
    return model.norm(h)


def additive(mask: Tensor) -> Tensor:
    return (1 - mask.double())[:, None, None, :] * torch.finfo(torch.float64).min


class Block(nn.Module):
    """Attention with a mask of keys and one of pairs, positions added again."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, seen: Tensor, pairs: Tensor, positions: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(self.norm(x + positions)).view(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d / self.heads) + pairs
        weights = scores.masked_fill(~seen, -1e9).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))


class MaskedViT(nn.Module):
    """A ViT that does not look at empty patches; the number of patches is anything."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 3)

    def before(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.patches(images).flatten(2).transpose(1, 2)
        filled = (F.max_pool2d(images.abs().sum(1, keepdim=True), 4) > 0).flatten(1)
        seen = torch.cat([filled.new_ones(filled.shape[0], 1), filled], 1)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        table = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / (1 + torch.arange(8, dtype=x.dtype))
        pairs = (seen[:, :, None] != seen[:, None, :]).to(x.dtype)[:, None] * -3
        return x, seen[:, None, None, :], pairs, table.sin()[None]

    def after(self, x: Tensor, t: int) -> Tensor:
        return self.head(x.sum(1) / t)

    def forward(self, images: Tensor) -> Tensor:
        x, seen, pairs, positions = self.before(images)
        t = x.shape[1]
        for block in self.blocks:
            x = block(x, seen, pairs, positions)
        return self.after(x, t)


def vit_by_hand(model: Any, kept: Callable[[Tensor], Tensor]) -> Tensor:
    x, seen, pairs, positions = model.before(IMAGES)
    x = model.blocks[0](x, seen, pairs, positions)
    index = kept(x)
    x, seen, pairs = pick(x, index, 1), pick(seen, index, 3), pick(pairs, index, 2, 3)
    for block in model.blocks[1:]:
        x = block(x, seen, pairs, pick(positions, index, 1))
    return model.after(x, index.shape[1])


class SequenceFirst(nn.Module):
    """Tokens in front; torch's attention takes a mask of pairs for every head of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(50, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(3))

    def masks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        near = (tokens[:, :, None] - tokens[:, None, :]).abs().to(self.last.weight.dtype) / -10
        return near.repeat_interleave(2, 0), (tokens < 8).to(near.dtype) * -9

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).transpose(0, 1)
        pairs, padding = self.masks(tokens)
        for layer in self.layers:
            h = layer(h, src_mask=pairs, src_key_padding_mask=padding)
        return self.last(h).mean(0)


def sequence_by_hand(model: Any, kept: Callable[[Tensor], Tensor]) -> Tensor:
    pairs, padding = model.masks(TOKENS)
    h = model.layers[0](model.embed(TOKENS).transpose(0, 1), src_mask=pairs, src_key_padding_mask=padding)
    index = kept(h.transpose(0, 1))
    h = pick(h.transpose(0, 1), index, 1).transpose(0, 1)
    pairs = pick(pairs, index.repeat_interleave(2, 0), 1, 2)
    for layer in model.layers[1:]:
        h = layer(h, src_mask=pairs, src_key_padding_mask=pick(padding, index, 1))
    return model.last(h).mean(0)


def tables(model: Any, kept: Callable[[Tensor], Tensor]) -> Tensor:
    """timm's ViT: nothing follows."""
    x = model.blocks[0](model._pos_embed(model.patch_embed(IMAGES)))
    x = pick(x, kept(x), 1)
    return model.forward_head(model.norm(model.blocks[1](x)))


def timms() -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


TEXT = {"input_ids": TOKENS, "attention_mask": MASK}
MODELS: dict[str, tuple[Callable[[], nn.Module], str, Any, Any, list[str]]] = {
    "bert eager": (lambda: bert("eager"), "encoder.layer.0", TEXT, bert_by_hand, ["mask"]),
    "bert sdpa": (lambda: bert("sdpa"), "encoder.layer.0", TEXT, bert_by_hand, ["mask"]),
    "llama": (llama, "layers.0", TEXT, llama_by_hand, ["mask", "rotary_emb[0]", "rotary_emb[1]"]),
    "vit": (MaskedViT, "blocks.0", {"images": IMAGES}, vit_by_hand, ["shape[1]"]),
    "sequence first": (
        SequenceFirst,
        "layers.0",
        {"tokens": TOKENS},
        sequence_by_hand,
        ["repeat_interleave"],
    ),
    "timm": (timms, "blocks.0", {"x": IMAGES}, tables, []),
}
every = pytest.mark.parametrize(("make", "at", "x", "hand", "said"), MODELS.values(), ids=MODELS)


def output(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def gradients(out: Tensor, model: nn.Module) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    found = torch.autograd.grad((out * weight).sum(), list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def made(make: Any, at: str, x: Any, **options: Any) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    return model, ga.rewrite(model, at, transform=ga.Tokens(0.5), subset=1.0, example_inputs=x, **options)


def assert_by_hand(aug: nn.Module, model: nn.Module, at: str, x: Any, hand: Any, stop: bool = False) -> None:
    out = output(aug(**x))
    kept = aug.drawn[at].draws.kept

    expected = hand(model, lambda h: kept)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients(out, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.few(1)
@every
def test_the_suffix_runs_on_the_kept_tokens_with_what_belongs_to_them(
    make: Any, at: str, x: Any, hand: Any, said: list[str]
) -> None:
    model, aug = made(make, at, x)
    torch.manual_seed(3)
    assert_by_hand(aug, model, at, x, hand)
    notes = " ".join(aug.plan.notes)
    assert ("followed by (told by sizes)" if said else "takes none from elsewhere") in notes
    for word in said:
        assert word in notes
    for one, other in zip(output(aug.eval()(**x)), output(model.eval()(**x)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.few(2)
@every
@pytest.mark.long
def test_verify_says_what_follows(make: Any, at: str, x: Any, hand: Any, said: list[str]) -> None:
    _, aug = made(make, at, x, stop_grad=True)
    claims = str(ga.verify(aug, x, tolerance=1e-9))
    assert ("from elsewhere (masks, positions) keep the tokens that each row keeps" in claims) == bool(said)


@pytest.mark.long
def test_copies_pickles_and_plans_are_the_same() -> None:
    make, at, x, hand, _ = MODELS["sequence first"]
    model, aug = made(make, at, x)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert_by_hand(twin, twin.original, at, x, hand)
    again = ga.rewrite(model, ga.Plan.from_json(aug.plan.to_json()), example_inputs=x)
    assert_by_hand(again, model, at, x, hand)
    assert ga.strip(aug) is model


@pytest.mark.long
def test_a_step_whose_masks_keep_other_tokens_is_found_by_verify() -> None:
    make, at, x, _, _ = MODELS["sequence first"]
    _, aug = made(make, at, x)

    def of_another_row(value: Tensor, kept: Tensor, *rest: Any) -> Tensor:
        return followed(value, kept.flip(0), *rest)

    graph, _ = copied(aug._parts.training_graph)
    wrong = [node for node in graph.nodes if node.target is followed]
    assert len(wrong) > 2  # two masks, and two blocks
    wrong[0].target = of_another_row
    ga.verify(aug, x)
    type(aug)._forward_training = compiled(graph, ga.AugmentedModule, aug._aliases)
    with pytest.raises(VerificationError, match="in training mode the output differs"):
        ga.verify(aug, x)


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "sequence first"])
@pytest.mark.long
def test_compiled_whole(name: str) -> None:
    make, at, x, hand, _ = MODELS[name]
    model, aug = made(make, at, x)
    torch._dynamo.reset()
    fast = torch.compile(aug, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        torch.manual_seed(seed)
        out = output(fast(**x))
        kept = aug.drawn[at].draws.kept
        torch.testing.assert_close(out, hand(model, lambda h, kept=kept: kept), rtol=1e-10, atol=1e-10)


# --- refused -----------------------------------------------------------------------------------------


class Around(nn.Module):
    """Something is made beside the cut and used behind it."""

    def __init__(self, beside: Callable[[Tensor], Any], use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.beside, self.use = beside, use

    def forward(self, tokens: Tensor) -> Tensor:
        extra = self.beside(tokens)
        return self.last(self.use(self.first(self.embed(tokens)), extra)).mean(1)


class Learned(nn.Module):
    """A table of learned positions is added behind the site."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.first(self.embed(tokens)) + self.table).mean(1)


def distances(tokens: Tensor) -> Tensor:
    t = tokens.shape[1]
    return torch.arange(1 - t, t).float()[None].expand(tokens.shape[0], -1)


def over_heads(h: Tensor, pairs: Tensor) -> Tensor:
    heads = h.view(*h.shape[:2], 4, 2).transpose(1, 2)  # as many heads as there are rows
    return ((heads @ heads.transpose(-1, -2) + pairs).softmax(-1) @ heads).transpose(1, 2).flatten(2)


def nearness(tokens: Tensor) -> Tensor:
    place = torch.arange(tokens.shape[1])
    return -(place[:, None] - place[None]).abs().float()[None]


REFUSED = {
    "relative": (
        Around(distances, lambda h, d: h + (h.mean((1, 2))[:, None] * d).mean(1)[:, None, None]),
        "17 and 15 entries for 9 and 8 tokens",
    ),
    "one for all": (
        Around(lambda t: torch.arange(t.shape[1]).float()[:, None], lambda h, p: h + p),
        "one for all rows, and has no dimension",
    ),
    "half": (Around(lambda t: t.shape[1] // 2 + 1, lambda h, n: h * n), "is 5 and 5|not one for each"),
    "over heads": (Around(nearness, over_heads), "behind it does not take 5 tokens"),
    "learned": (Learned(), "table behind it does not take 5 tokens"),
}


@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_follow_is_refused(net: nn.Module, message: str) -> None:
    if "5 and 5" in message:  # a number that is the same for both lengths follows neither
        aug = ga.rewrite(net, "first", transform=ga.Tokens(0.5), subset=1.0, example_inputs=TOKENS)
        assert "takes none from elsewhere" in " ".join(aug.plan.notes)
        return
    with pytest.raises(InvalidOption, match=f"Tokens is not possible at 'first': .*{message}"):
        ga.rewrite(net, "first", transform=ga.Tokens(0.5), subset=1.0, example_inputs=TOKENS)


class First(Transform):
    """Half of the tokens, and it does not say which."""

    needs = Needs(new_tokens=True)

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return rows[:, : rows.shape[1] // 2]


@pytest.mark.long
def test_options_that_do_not_go_with_it_are_refused() -> None:
    net = MaskedViT().double()
    options: dict[str, Any] = {"subset": 1.0, "example_inputs": IMAGES}
    with pytest.raises(InvalidOption, match=r"First\.kept does not say which tokens"):
        ga.rewrite(net, "blocks.0", transform=First(), **options)
    with pytest.raises(InvalidOption, match="views=2 with a transform that drops tokens"):
        ga.rewrite(net, "blocks.0", transform=ga.Tokens(0.5), views=2, **options)
    with pytest.raises(InvalidOption, match="2 sites that drop tokens"):
        ga.rewrite(net, ["blocks.0", "blocks.1"], transform=ga.Tokens(0.5), **options)
    with pytest.raises(InvalidOption, match="one_site=True leaves a site alone"):
        ga.rewrite(timms(), ["blocks.0", "blocks.1"], transform=ga.Tokens(0.5), one_site=True, subset=1.0)


def test_a_row_is_followed_wherever_it_lies() -> None:
    kept = torch.tensor([[0, 2], [1, 2]])
    value = torch.arange(2.0 * 3 * 2 * 3).view(3, 2 * 2, 3)  # rows in dimension 1, two neighbours each
    found = followed(value, kept, (1, 1, 2), (0, 2))
    for row in range(2):
        for neighbour in range(2):
            part = value[:, 2 * row + neighbour]
            assert torch.equal(found[:, 2 * row + neighbour], part[kept[row]][:, kept[row]])
    assert followed(value, None, (1, 1, 2), (0, 2)) is value
