"""Models of transformers that ask their layers for hidden states, which installs hooks in the first call."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import graphaug as ga
from graphaug.errors import BypassedSite

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
    "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
MODELS = [
    (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, "wav2vec2"),
    (HubertForSequenceClassification, HubertConfig, "hubert"),
]


@pytest.mark.long
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "config", "name"), MODELS)
def test_it_is_the_model_whether_it_was_called_before_or_not(kind, config, name, weighted) -> None:
    torch.manual_seed(0)
    model = kind(config(**SIZES, use_weighted_layer_sum=weighted)).double().train()
    plain, site, x = copy.deepcopy(model), f"{name}.encoder.layers.1", torch.randn(4, 800).double()
    if weighted:
        with pytest.raises(BypassedSite):
            ga.rewrite(model, site, example_inputs=x)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    aug = ga.rewrite(model, site, allow_bypass=weighted, example_inputs=x)
    aug.augmentations[site].__dict__["forward"] = lambda h: h  # which draws nothing either
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for rows in (4, 3):
        values = torch.randn(rows, 800).double()
        outputs = []
        for each, owner in ((plain, plain), (aug, model)):
            torch.manual_seed(1)
            owner.zero_grad()
            logits = each(values).logits
            logits.square().mean().backward()
            outputs.append([logits, *(p.grad for p in owner.parameters() if p.grad is not None)])
        assert len(outputs[0]) == len(outputs[1])
        for a, b in zip(*outputs, strict=True):
            torch.testing.assert_close(a, b)
