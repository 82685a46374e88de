"""A mask that is a tensor on the example and None in a call. Oracles: the plain layers, on the kept rows.

transformers makes no mask where nothing is padded, except on fake tensors: there it cannot look.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import InvalidOption

IDS = torch.randint(3, 40, (5, 8), generator=torch.Generator().manual_seed(0))
WHOLE, PADDED = torch.ones_like(IDS), (torch.arange(8) < torch.tensor([8, 5, 8, 3, 8])[:, None]).long()
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, use_cache=False, **SIZES)
    return transformers.LlamaModel(config).double()


def bert() -> nn.Module:
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertModel(transformers.BertConfig(vocab_size=40, **SIZES, **quiet)).double()


def by_hand(model: nn.Module, ids: Tensor, padding: Tensor, site: str, kept: Tensor) -> Tensor:
    """Llama layer by layer; one branch of layer 1 on the kept rows, padded with zeros, with a mask written out."""
    h = model.embed_tokens(ids)
    turned = model.rotary_emb(h, position_ids=torch.arange(ids.shape[1])[None])
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    mask = (causal & padding.bool()[:, None, :])[:, None]
    for i, layer in enumerate(model.layers):
        for name, norm in (("self_attn", layer.input_layernorm), ("mlp", layer.post_attention_layernorm)):
            rows = kept if (i, name) == (1, site) else torch.arange(len(ids))
            part = norm(h[rows])
            if name == "mlp":
                out = layer.mlp(part)
            else:
                out = layer.self_attn(part, position_embeddings=turned, attention_mask=mask[rows])[0]
            added = torch.zeros_like(h).index_put((rows,), out * len(ids) / len(rows))
            h = h + added
    return model.norm(h)


@pytest.mark.parametrize("site", ["self_attn", "mlp"])
@pytest.mark.parametrize("example", [None, WHOLE, PADDED], ids=["no mask", "all ones", "padded"])
def test_skipped_rows_are_those_of_a_computation_by_hand(site: str, example: Any) -> None:
    model = llama()
    given = {"input_ids": IDS} if example is None else {"input_ids": IDS, "attention_mask": example}
    aug = ga.skip_rows(model, f"layers.1.{site}", example_inputs=given).train()
    for mask in [None] if example is None else [WHOLE, PADDED]:
        call = {"input_ids": IDS} if mask is None else {"input_ids": IDS, "attention_mask": mask}
        found = aug(**call).last_hidden_state
        seen = WHOLE if mask is None else mask
        expected = by_hand(model, IDS, seen, site, aug.skip_rows.kept)
        at = seen.bool()  # what stands at padding is nobody's
        torch.testing.assert_close(found[at], expected[at])
        weights = list(model.layers.parameters())
        for mine, hand in zip(
            torch.autograd.grad(found[at].pow(2).sum(), weights),
            torch.autograd.grad(expected[at].pow(2).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(mine, hand)
    ga.verify(aug, call)


def test_views_of_a_call_without_a_mask_are_the_plain_model_so_many_times() -> None:
    model = llama()
    aug = ga.rewrite(model, "layers.1", views=2, rate=0.0, example_inputs={"input_ids": IDS}).train()
    expected = model(IDS).last_hidden_state
    torch.testing.assert_close(aug(IDS).last_hidden_state, torch.cat([expected, expected]))


def test_kept_tokens_of_a_call_without_a_mask_are_a_shorter_call() -> None:
    model, given = bert(), {"input_ids": IDS, "attention_mask": PADDED}
    aug = ga.rewrite(model, "encoder.layer.1", transform=ga.Tokens(0.5), subset=1.0, example_inputs=given)
    kept: list[Tensor] = []
    aug.train().deep_augment.register_forward_hook(lambda _, args, out: kept.append(out))
    found = aug(IDS, attention_mask=WHOLE).last_hidden_state
    value = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    torch.testing.assert_close(found, model.encoder.layer[2](value))
    ga.verify(aug, {"input_ids": IDS, "attention_mask": WHOLE})


@pytest.mark.parametrize("site", ["layers.0", "layers.1"])
def test_a_whole_layer_is_no_branch_though_the_mask_is_made_beside_it(site: str) -> None:
    with pytest.raises(InvalidOption, match="no residual branch"):
        ga.skip_rows(llama(), site, example_inputs={"input_ids": IDS})
