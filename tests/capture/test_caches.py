"""Decoders that fill a cache unless they are told not to: captured without where nothing else changes, else refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
)

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

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
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20, dropout=0.0,
    )  # fmt: skip
    return BartModel(config), "decoder.layers.0", ("input_ids", "decoder_input_ids")


def gpt2() -> Any:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    config = GPT2Config(vocab_size=40, bos_token_id=1, eos_token_id=2, **sizes)
    return GPT2LMHeadModel(config), "transformer.h.0", ("input_ids",)


DECODERS = [llama, mixtral, bart, gpt2]


def tokens(names: tuple[str, ...], rows: int = 4, length: int = 7) -> dict[str, torch.Tensor]:
    return {name: torch.randint(3, 40, (rows, length)) for name in names}


@pytest.mark.few(2)
@pytest.mark.parametrize("make", DECODERS)
def test_a_decoder_is_captured_without_its_cache_and_all_else_is_as_before(make: Any) -> None:
    torch.manual_seed(0)
    model, site, names = make()
    aug = ga.rewrite(model, site, allow_bypass=True, subset=0.0, example_inputs=tokens(names))
    assert any("use_cache=False" in note and "all else was equal" in note for note in aug.plan.notes)
    inputs = tokens(names, 3, 9)
    for training in (True, False):
        model.train(training)
        aug.train(training)
        expected, found = model(**inputs), aug(**inputs)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
        assert expected.past_key_values is not None
        # a training step returns no cache; in eval mode the model runs as it is
        assert (found.past_key_values is None) == training
        if training:
            found[0].square().sum().backward()
            mine = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            expected[0].square().sum().backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    torch.testing.assert_close(mine[name], p.grad, rtol=1e-4, atol=1e-6)
            model.zero_grad()


def test_the_augmentation_is_the_hooks_and_a_call_may_leave_the_cache_open() -> None:
    torch.manual_seed(0)
    model, site, names = llama()
    aug = ga.rewrite(model, site, stop_grad=True, example_inputs=tokens(names)).train()
    inputs = tokens(names)
    calls = {"left out": {}, "None": {"use_cache": None}, "False": {"use_cache": False}}
    found = {}
    for name, given in calls.items():
        torch.manual_seed(2)
        found[name] = aug(**inputs, **given)[0]
    assert torch.equal(found["left out"], found["None"])
    assert torch.equal(found["left out"], found["False"])
    assert not torch.equal(found["left out"], model(**inputs)[0])
    with pytest.raises(AssumptionViolated, match=r"use_cache == False.*leave it out in training mode"):
        aug(**inputs, use_cache=True)
    assert ga.verify(aug, inputs)
    with pytest.raises(AssumptionViolated, match="past_key_values"):
        aug(**inputs, past_key_values=model(**inputs).past_key_values)


def test_what_acts_in_eval_mode_acts_without_a_cache() -> None:
    """As dropout does in Monte Carlo estimates: no original could run in its place."""
    torch.manual_seed(0)
    model, site, names = llama()
    aug = ga.rewrite(model, site, subset=1.0, example_inputs=tokens(names)).eval()
    next(iter(aug.augmentations.values())).train()
    inputs = tokens(names)
    found = aug(**inputs)
    assert found.past_key_values is None
    assert not torch.equal(found[0], model(**inputs)[0])


@pytest.mark.long
def test_the_rewritten_decoder_generates_with_its_cache() -> None:
    torch.manual_seed(0)
    model, site, names = gpt2()
    model.eval()
    aug = ga.rewrite(model, site, example_inputs=tokens(names)).eval()
    ids = tokens(names)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(aug.original.generate(ids, **options), model.generate(ids, **options))
    more, again = (run(ids[:, :1], cache=run(ids).past_key_values) for run in (aug, model))
    assert torch.equal(more.logits, again.logits)


@pytest.mark.few(1)
@pytest.mark.parametrize("make", DECODERS)
def test_none_is_needed_without_examples_either(make: Any) -> None:
    torch.manual_seed(0)
    model, site, names = make()
    aug = ga.rewrite(model, site, allow_bypass=True).train()
    assert "use_cache=False" in str(aug.plan)
    mask = {"attention_mask": torch.ones(4, 7, dtype=torch.int64)} if make is bart else {}
    assert aug(**tokens(names[:1]), **mask).past_key_values is None
    assert any(site in str(entry) for entry in ga.sites(model))


@pytest.mark.long
def test_on_the_meta_device_nothing_is_compared_and_that_is_said() -> None:
    with torch.device("meta"):
        model, site, names = llama()
    inputs = {name: t.to("meta") for name, t in tokens(names).items()}
    with pytest.raises(CaptureError, match=r"Pass use_cache=False in example_inputs\.$"):
        ga.rewrite(model, site, example_inputs=inputs)
    for examples in ({**inputs, "use_cache": False}, None):
        aug = ga.rewrite(model, site, example_inputs=examples)
        assert "not compared: it is on the meta device" in str(aug.plan)


class SharesKeys(torch.nn.Module):
    """A decoder whose second layer reads the first one's keys off the cache, as layers that share them do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(**SIZES, **HEADS)
        self.embed = torch.nn.Embedding(40, 4)
        self.layers = torch.nn.ModuleList([CachedLayer(), CachedLayer()])

    def forward(self, input_ids: torch.Tensor, use_cache: bool | None = None) -> torch.Tensor:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        h, cache = self.embed(input_ids), KeyCache() if use_cache else None
        for layer in self.layers:
            h = layer(h, cache)
        return h


class KeyCache:
    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []


class CachedLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key = torch.nn.Linear(4, 4)

    def forward(self, h: torch.Tensor, cache: KeyCache | None) -> torch.Tensor:
        key = cache.keys[0] if cache is not None and cache.keys else self.key(h)
        if cache is not None:
            cache.keys.append(key)
        return h + key


def test_a_model_that_is_another_without_its_cache_is_refused_or_told_in_every_call() -> None:
    model = SharesKeys()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ids = torch.randint(40, (3, 5))
    for examples in (ids, None):
        with pytest.raises(CaptureError, match="in every call: without it this model returns something else"):
            ga.rewrite(model, "layers.0", example_inputs=examples)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    aug = ga.rewrite(
        model, "layers.0", subset=0.0, example_inputs={"input_ids": ids, "use_cache": False}
    ).train()
    assert torch.equal(aug(ids, use_cache=False), model(ids, use_cache=False))
    for left_open in ({}, {"use_cache": None}):
        with pytest.raises(AssumptionViolated, match="use_cache"):
            aug(ids, **left_open)
    assert torch.equal(aug.eval()(ids), model.eval()(ids))


class StoresDetached(SharesKeys):
    """The values are the same with a cache, and the gradients are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([DetachedLayer(), DetachedLayer()])

    def forward(self, input_ids: torch.Tensor, use_cache: bool | None = None) -> Any:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        h, cache = self.embed(input_ids), KeyCache() if use_cache else None
        for layer in self.layers:
            h = layer(h, cache)
        return {"hidden": h, **({} if cache is None else {"cache": cache})}


class DetachedLayer(CachedLayer):
    def forward(self, h: torch.Tensor, cache: KeyCache | None) -> torch.Tensor:
        key = self.key(h)
        if cache is not None:
            key = key.detach()
            cache.keys.append(key)
        return h + key


def test_gradients_are_compared_as_well() -> None:
    with pytest.raises(CaptureError, match="without it this model returns something else"):
        ga.rewrite(StoresDetached(), "layers.0", example_inputs=torch.randint(40, (3, 5)))


class OwnMeaning(torch.nn.Module):
    """No decoder of transformers: what its argument means is its own business."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, use_cache: bool | None = None) -> torch.Tensor:
        h = self.second(self.first(x))
        return h if use_cache is None else h * (3 if use_cache else 5)


@pytest.mark.parametrize("given", [True, False])
def test_an_argument_of_that_name_is_any_other_elsewhere(given: bool) -> None:
    model, x = OwnMeaning(), torch.randn(3, 4)
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs={"x": x, "use_cache": given}).train()
    torch.testing.assert_close(aug(x, use_cache=given), model(x, use_cache=given))
    for call in ({}, {"use_cache": None}, {"use_cache": not given}):
        with pytest.raises(AssumptionViolated, match="use_cache"):
            aug(x, **call)
    plain = ga.rewrite(model, "first", subset=0.0, example_inputs=x).train()
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.long
def test_the_head_behind_a_closed_decoder_is_no_bypass() -> None:
    model = gpt2()[0]
    aug = ga.rewrite(model, "lm_head", example_inputs=tokens(("input_ids",)))
    assert "separates the input from the output" in str(aug.plan)


@pytest.mark.few(1)
@pytest.mark.parametrize("names", [("attention_mask",), ()])
def test_a_call_by_places_says_nothing_of_the_cache(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    site, ids = "model.layers.0", tokens(("input_ids",))["input_ids"]
    examples = {"input_ids": ids, "use_cache": None, **{name: torch.ones_like(ids) for name in names}}
    aug = ga.rewrite(model, site, stop_grad=True, example_inputs=examples)
    order = list(inspect.signature(model.forward).parameters)
    count = order.index("use_cache") + 1
    assert ga.verify(aug, tuple(examples.get(name) for name in order[:count]))


def test_places_that_move_are_a_difference() -> None:
    model = gpt2()[0]
    asked = {"return_dict": False, "output_hidden_states": True}
    with pytest.raises(CaptureError, match="without it this model returns something else"):
        ga.rewrite(model, "transformer.h.0", example_inputs={**tokens(("input_ids",)), **asked})


def test_an_encoder_that_could_fill_a_cache_and_does_not_is_captured_as_it_is() -> None:
    model = BertModel(BertConfig(**SIZES, num_attention_heads=2, max_position_embeddings=20)).eval()
    assert model.config.use_cache
    aug = ga.rewrite(model, "encoder.layer.0", example_inputs=tokens(("input_ids",)))
    assert "use_cache" not in str(aug.plan)


class Around(torch.nn.Module):
    """A decoder in a model of one's own, whose forward has no word for caches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(input_ids=ids).last_hidden_state
        return out


class Passes(torch.nn.Module):
    """Hands on what it does not name, as wrappers that add adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()[0]

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        return self.inner(input_ids=input_ids, **more)


class Decides(Passes):
    """Returns something else where a cache was made."""

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        out = self.inner(input_ids=input_ids, **more)
        return out.last_hidden_state * (2.0 if out.past_key_values is None else 1.0)


def test_a_wrapper_that_hands_its_keywords_on_goes_without_a_cache_as_well() -> None:
    torch.manual_seed(0)
    model, inputs = Passes(), tokens(("input_ids",))
    aug = ga.rewrite(model, "inner.layers.0", stop_grad=True, example_inputs=inputs)
    assert any("use_cache=False" in note and "all else was equal" in note for note in aug.plan.notes)
    assert ga.verify(aug, inputs)
    assert aug.train()(**inputs).past_key_values is None
    assert aug(**inputs, use_cache=False).past_key_values is None
    with pytest.raises(AssumptionViolated, match="use_cache == False"):
        aug(**inputs, use_cache=True)
    found, expected = aug.eval()(**inputs), model.eval()(**inputs)
    assert found.past_key_values is not None
    assert torch.equal(found[0], expected[0])


def test_a_wrapper_that_looks_whether_there_is_a_cache_is_not_taken_for_the_same() -> None:
    inputs = tokens(("input_ids",))
    with pytest.raises(CaptureError, match="use_cache"):
        ga.rewrite(Decides(), "inner.layers.0", example_inputs=inputs)
    aug = ga.rewrite(Decides(), "inner.layers.0", example_inputs={**inputs, "use_cache": False}).train()
    aug(**inputs, use_cache=False)
    with pytest.raises(AssumptionViolated, match="use_cache"):
        aug(**inputs)


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
