"""Decoders that fill a cache unless they are told not to: refused with what to do, and right once that is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartModel, LlamaConfig, LlamaModel, MixtralConfig, MixtralModel

import graphaug as ga
from graphaug.errors import CaptureError

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}


def llama() -> Any:
    return LlamaModel(LlamaConfig(**SIZES, **HEADS)), "layers.0", ("input_ids",)


def mixtral() -> Any:
    """Experts in float32, which have no form without data."""
    return MixtralModel(MixtralConfig(**SIZES, **HEADS, num_local_experts=3)), "layers.0", ("input_ids",)


def bart() -> Any:
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20,
    )  # fmt: skip
    return BartModel(config), "decoder.layers.0", ("input_ids", "decoder_input_ids")


@pytest.mark.parametrize("make", [llama, mixtral, bart])
def test_the_refusal_says_how_to_go_on(make: Any) -> None:
    torch.manual_seed(0)
    model, site, names = make()
    inputs = {name: torch.randint(3, 40, (4, 7)) for name in names}
    with pytest.raises(CaptureError, match=r"Pass use_cache=False in example_inputs\.$"):
        ga.rewrite(model, site, allow_bypass=True, example_inputs=inputs)
    aug = ga.rewrite(
        model, site, allow_bypass=True, subset=0.0, example_inputs={**inputs, "use_cache": False}
    )
    model.eval()  # whose dropout draws nothing
    aug.eval()
    with aug.only_the_graph():
        found = aug(**inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, model(**inputs, use_cache=False).last_hidden_state, rtol=0, atol=0)


class Around(torch.nn.Module):
    """A decoder in a model of one's own, whose forward has no word for caches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(input_ids=ids).last_hidden_state
        return out


def test_where_no_argument_turns_it_off_a_setting_does() -> None:
    model, ids = Around(), torch.randint(3, 40, (4, 7))
    with pytest.raises(CaptureError, match=r"Set model\.inner\.config\.use_cache = False\.$"):
        ga.rewrite(model, "inner.layers.0", example_inputs=ids)
    model.inner.config.use_cache = False
    ga.rewrite(model, "inner.layers.0", example_inputs=ids)


class Filled:
    """What a forward makes and its modules fill, and that is no cache."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []


class Keeps(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, filled: Any) -> Any:
        filled.held.append(self.layer(x))
        return filled.held[-1]


class Decodes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Keeps(), Keeps()

    def forward(self, x: torch.Tensor, use_cache: bool = True) -> Any:
        filled = Filled()
        return self.second(self.first(x, filled), filled)


def test_another_object_is_not_taken_for_a_cache() -> None:
    """What fills it is opened."""
    model = Decodes()
    aug = ga.rewrite(model, "first", transform=lambda h: h * 1.0, example_inputs=torch.randn(3, 4))
    assert aug.plan.opened == ("first", "second")
    x = torch.randn(5, 4)
    torch.testing.assert_close(aug.train()(x), model(x))


class Slot:
    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None


class Slots:
    """A cache as transformers has it: slots in a list, each filled by its own layer."""

    def __init__(self) -> None:
        self.layers = [Slot(), Slot()]


class NeedsData(torch.nn.Module):
    """Closed code that no tensor without data can run, as experts are that sort their tokens."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer, self.number = torch.nn.Linear(4, 4), number

    def forward(self, x: torch.Tensor, *, cache: Slots) -> torch.Tensor:
        h = self.layer(x)
        h = h * 2 if h.sum().item() > 0 else h
        slot = cache.layers[self.number]
        slot.keys = h if slot.keys is None else slot.keys + h
        return slot.keys


class Sorts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = NeedsData(0), NeedsData(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cache = Slots()
        out: torch.Tensor = self.second(self.first(x, cache=cache), cache=cache)
        return out


def test_what_closed_code_fills_deep_inside_is_seen_without_fakes_too() -> None:
    with pytest.raises(CaptureError, match="it hands a Slot to 'first', which fills or changes it"):
        ga.rewrite(Sorts(), "first", example_inputs=torch.randn(3, 4))
