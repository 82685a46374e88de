"""A sample of the coverage table: models that look at their inputs, keep caches, or change with the mode."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import coverage, zoo

pytestmark = pytest.mark.few(2)

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

NAMES = [
    *(f"timm:{family}" for family in ("hiera", "crossvit", "naflexvit")),
    *("torchvision:inception_v3", "torchvision:swin_t"),
    *("torchvision:segmentation/lraspp_mobilenet_v3_large", "torchvision:video/r3d_18"),
    *(
        f"transformers:{kind}:MaskedLM"
        for kind in (
            *("deberta", "big_bird", "mpnet", "longformer", "roformer", "funnel"),
            *("bert", "bart", "xlm"),
        )
    ),
    *(f"transformers:{kind}:AudioClassification" for kind in ("wav2vec2", "whisper")),
    "transformers:vit:ImageClassification",
    *("transformers:gpt2:CausalLM", "transformers:llama:CausalLM", "transformers:t5:Seq2SeqLM"),
]
LONG = {
    *("timm:crossvit", "torchvision:inception_v3", "torchvision:video/r3d_18"),
    *("transformers:funnel:MaskedLM", "transformers:longformer:MaskedLM", "transformers:llama:CausalLM"),
    *("timm:hiera", "timm:naflexvit", "torchvision:swin_t"),
    "torchvision:segmentation/lraspp_mobilenet_v3_large",
    *("transformers:deberta:MaskedLM", "transformers:big_bird:MaskedLM", "transformers:t5:Seq2SeqLM"),
    "transformers:wav2vec2:AudioClassification",
}
"""A dozen seconds each, and in `make coverage` as well."""
COMPILED = {"transformers:bert:MaskedLM", "transformers:llama:CausalLM"}
"""With fullgraph; Inductor's compiler, which `make coverage` tries as well, takes most of a minute for one."""


def clip_text() -> tuple[nn.Module, zoo.Inputs]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPTextConfig(vocab_size=40, max_position_embeddings=16, eos_token_id=2, **sizes)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 40, (2, 9), generator=generator)
    tokens[:, -1] = 2
    return zoo._runs(transformers.CLIPTextModel(config), {"input_ids": tokens})


@functools.cache
def table() -> dict[str, zoo.Case]:
    extra = zoo.Case("transformers:clip_text_model", "transformers", clip_text)
    return {case.name: case for case in [*zoo.cases(), extra]}


@pytest.mark.filterwarnings("ignore")  # these libraries warn about themselves
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in LONG else name
        for name in [*NAMES, "transformers:clip_text_model"]
    ],
)
@pytest.mark.long
def test_an_awkward_model(name: str, monkeypatch: Any) -> None:
    depths = zoo.three_depths
    monkeypatch.setattr(zoo, "three_depths", lambda *a: depths(*a)[1:2] or depths(*a)[:1])
    monkeypatch.setattr(coverage, "INDUCTOR", ())
    # tests/verbs/test_architectures.py has captures without inputs
    monkeypatch.setattr(coverage, "without_examples", lambda *a: "")
    record = coverage.measure(table()[name], compiled=name in COMPILED)
    assert record["status"] == "ok", record["reason"]
    (site,) = record["sites"]
    assert site["bit_equal"] or "captured for" in site["fixed"]
    assert site["gradient_gap"] <= coverage.GRADIENT_TOLERANCE
    assert record.get("fullgraph") == ("ok" if name in COMPILED else None)
