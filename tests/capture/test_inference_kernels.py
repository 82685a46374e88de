"""Opened code that does something else without gradients, as torch's encoders do. Oracle: the model, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

pytestmark = [
    pytest.mark.few(4),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

MODES: dict[str, Callable[[], Any]] = {
    "as it is": contextlib.nullcontext,
    "without gradients": torch.no_grad,
    "for inference": torch.inference_mode,
    "under autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class Encoder(nn.Module):
    """Padded sentences through torch's encoder, which has kernels for inference alone."""

    def __init__(self, padded: bool = True, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.emb, self.enc, self.fc = (
            nn.Embedding(20, 8),
            nn.TransformerEncoder(layer, 2, **options),
            nn.Linear(8, 3),
        )
        self.padded = padded

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids == 0) if self.padded else None
        out: Tensor = self.fc(self.enc(self.emb(ids), src_key_padding_mask=mask).mean(1))
        return out


def sentences(kind: str) -> Tensor:
    ids = torch.randint(1, 20, (6, 5), generator=torch.Generator().manual_seed(0))
    if kind == "padded right":
        ids[::2, 3:] = 0
    elif kind == "padded anywhere":
        ids[::2, 1] = 0
    return ids


KINDS = ("whole", "padded right", "padded anywhere")


def assert_original(model: nn.Module, aug: nn.Module, *inputs: Tensor) -> None:
    model.eval()
    aug.eval()
    for mode in MODES.values():
        for x in inputs:
            with mode():
                assert torch.equal(aug(x), model(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("at", ["enc.layers.0", "enc.layers.0.linear1", "enc.layers.0.self_attn", "enc"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_eval_mode_the_encoder_is_the_original_in_every_mode_of_torch(at: str, kind: str) -> None:
    model = Encoder()
    aug = ga.rewrite(model, at=at, stop_grad=True, allow_bypass=True, example_inputs=sentences(kind))
    assert_original(model, aug, *map(sentences, KINDS))
    aug.train()(sentences("padded right")).sum().backward()  # and in training mode there is a graph


@pytest.mark.long
def test_an_example_that_the_eval_graph_does_not_hold_for_is_captured_for_training() -> None:
    aug = ga.rewrite(Encoder(), at="enc.layers.0", example_inputs=sentences("padded anywhere"))
    assert any("in eval mode the original runs on the example:" in note for note in aug.plan.notes)
    with pytest.raises(
        CaptureError, match="enable_nested_tensor=False"
    ):  # where no original can take its place
        ga.tap(Encoder(), "enc.layers.0", example_inputs=sentences("padded anywhere"))
    ga.tap(Encoder(enable_nested_tensor=False), "enc.layers.0", example_inputs=sentences("padded anywhere"))


@pytest.mark.few(1)
@pytest.mark.parametrize("when", ["before", "after"])
def test_parameters_may_be_frozen_before_and_after_the_capture(when: str) -> None:
    model, x = Encoder(), sentences("padded right")
    if when == "before":
        model.requires_grad_(False).fc.requires_grad_(True)
    aug = ga.rewrite(model, at="enc.layers.0", example_inputs=x)
    model.requires_grad_(False).fc.requires_grad_(True)
    model.eval()
    aug.eval()
    for mode in (contextlib.nullcontext, torch.no_grad):
        with mode():
            assert torch.equal(aug(x), model(x))
    aug.train()(x).sum().backward()


@pytest.mark.long
def test_inputs_that_require_no_gradient_are_no_reason_to_leave_the_graph() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.enc = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.enc(x, src_key_padding_mask=x[..., 0] > 9).mean(1)
            return out

    x = torch.randn(4, 5, 8)
    x[::2, 3:, 0] = 10
    model = Features()
    aug = ga.rewrite(model, at="enc.layers.0", example_inputs=x)
    assert_original(model, aug, x)
    with aug.only_the_graph():
        assert torch.equal(aug(x), model(x))


@pytest.mark.long
def test_copies_and_compiled_ones_keep_to_the_original() -> None:
    model, x = Encoder(), sentences("padded right")
    aug = ga.rewrite(model, at="enc.layers.0", example_inputs=x)
    for other in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert_original(model, other, x)
    compiled = torch.compile(aug.train(), backend="eager", fullgraph=True)
    assert compiled(x).shape == (6, 3)


@pytest.mark.long
def test_the_switch_of_the_kernels_is_relied_on() -> None:
    model, x = Encoder(), sentences("padded anywhere")
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        aug = ga.rewrite(model, at="enc.layers.0", example_inputs=x)
        assert not any("original runs" in note for note in aug.plan.notes)
        with aug.eval().only_the_graph(), torch.no_grad():
            assert torch.equal(aug(x), model.eval()(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert_original(model, aug, x, sentences("padded right"))
    with pytest.raises(AssumptionViolated, match="get_fastpath_enabled"):
        aug.train()(x)


class Asks(nn.Module):
    """Code of a user's that asks, each in its own way, whether gradients are wanted."""

    def __init__(self, ask: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.a, self.b, self.ask = nn.Linear(4, 4), nn.Linear(4, 4), ask

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        out: Tensor = self.b(h * 2 if self.ask(self, h) else h)
        return out


def _twice(m: nn.Module, h: Tensor) -> bool:
    with torch.no_grad():
        inside = torch.is_grad_enabled()
    return inside or torch.is_grad_enabled()


ASKS: dict[str, Callable[[Any, Tensor], bool]] = {
    "mode": lambda m, h: torch.is_grad_enabled(),
    "mode in a block and behind it": _twice,
    "mode beside overrides": lambda m, h: torch.overrides.has_torch_function((h,)) or torch.is_grad_enabled(),
    "overrides of one": lambda m, h: torch.overrides.has_torch_function_unary(h),
    "overrides of several": lambda m, h: torch.overrides.has_torch_function_variadic(h, m.b.weight),
    "result": lambda m, h: h.requires_grad,
    "parameter": lambda m, h: m.a.weight.requires_grad,
}


@pytest.mark.parametrize("kind", ASKS)
def test_however_code_asks_for_gradients_eval_mode_is_the_original(kind: str) -> None:
    model, x = Asks(ASKS[kind]), torch.randn(4, 4)
    aug = ga.rewrite(model, at="a", example_inputs=x)
    assert_original(model, aug, x)
    model.requires_grad_(False)
    assert_original(model, aug, x)


def test_a_parameter_that_is_frozen_behind_the_capture_raises_in_training_where_it_was_asked_for() -> None:
    model, x = Asks(ASKS["parameter"]), torch.randn(4, 4)
    aug = ga.rewrite(model, at="a", example_inputs=x).train()
    aug(x)
    model.a.weight.requires_grad_(False)
    with pytest.raises(AssumptionViolated, match=r"a\.weight\.requires_grad"):
        aug(x)
    ga.rewrite(model, at="a", example_inputs=x).train()(x)
