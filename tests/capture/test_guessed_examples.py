"""Models rewritten without example_inputs: what is taken for an example, and that it binds nobody.

The oracle is the model itself, copied before it was rewritten.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from networks import fingerprint
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError, InvalidOption, SparseBackwardError

pytestmark = pytest.mark.few(2)

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


class Words(nn.Module):
    """An embedding, a mean over the words, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        return self.head(self.body(self.words(ids)).sum(1) / length)


class HeadFirst(nn.Module):
    """Registers its layers in another order than they run in, and takes images of 28×28 only."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.conv = nn.Linear(4 * 26 * 26, 3), nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.conv(x), 1))


class Pair(nn.Module):
    """Two inputs of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.body(x) * self.body(y))


def images(*shape: int) -> dict[str, Any]:
    return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))}


def ids(rows: int, length: int, name: str = "input_ids", most: int = 11) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows + length)
    return {name: torch.randint(0, most, (rows, length), generator=generator)}


def pixels(rows: int) -> dict[str, Any]:
    return {"pixel_values": images(rows, 3, 16, 16)["x"]}


Case = tuple[Callable[[], nn.Module], str, str, list[dict[str, Any]]]
MODELS: dict[str, Case] = {
    "torchvision resnet18": (
        torchvision.models.resnet18, "layer2.0.add", "2×3×224×224", [images(3, 3, 64, 64), images(5, 3, 80, 48)],
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32),
        "encoder.layers.encoder_layer_0", "2×3×32×32", [images(3, 3, 32, 32), images(6, 3, 32, 32)],
    ),
    "torchvision convnext": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]),
        "features.1.0", "2×3×224×224", [images(3, 3, 64, 64), images(5, 3, 48, 80)],
    ),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2),
        "blocks.0.add", "2×3×32×32", [images(3, 3, 32, 32), images(6, 3, 32, 32)],
    ),
    "timm resnet": (
        lambda: timm.create_model("resnet10t"), "layer2.0", "2×3×176×176", [images(3, 3, 64, 64), images(4, 3, 96, 64)],
    ),
    "timm swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 2), embed_dim=8,
            drop_path_rate=0.0,
        ),
        "layers.0.blocks.0", "2×3×56×56", [images(3, 3, 56, 56), images(5, 3, 56, 56)],
    ),
    "transformers bert": (
        lambda: transformers.BertModel(transformers.BertConfig(vocab_size=11, **SMALL, **NO_DROPOUT)),
        "encoder.layer.0", "3×5 ids", [ids(2, 9), ids(7, 3)],
    ),
    "transformers gpt2": (
        lambda: transformers.GPT2Model(
            transformers.GPT2Config(
                vocab_size=11, n_embd=16, n_layer=2, n_head=2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0,
                bos_token_id=0, eos_token_id=0,
            )
        ),
        "h.0.add_1", "3×5 ids", [ids(2, 9) | {"use_cache": False}, ids(7, 3) | {"use_cache": False}],
    ),
    "transformers vit": (
        lambda: transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL, **NO_DROPOUT)),
        "layers.0", "2×3×16×16", [pixels(3), pixels(6)],
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)), "0", "2×8",
        [{"input": images(3, 8)["x"]}, {"input": images(1, 8)["x"]}],
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2)
        ),
        "2", "2×4×256", [{"input": images(3, 4, 31)["x"]}, {"input": images(5, 4, 400)["x"]}],
    ),
    "video": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)),
        "1", "3×2×16×112×112", [{"input": images(2, 2, 5, 8, 8)["x"]}, {"input": images(5, 2, 6, 7, 9)["x"]}],
    ),
    "embedding": (Words, "body", "2×16 ids", [ids(3, 5, "ids"), ids(5, 40, "ids")]),
    "layers out of order": (HeadFirst, "conv", "2×1×28×28", [images(3, 1, 28, 28), images(5, 1, 28, 28)]),
    "two inputs": (
        Pair, "body@1", "x 2×5, y 2×5",
        [images(3, 5) | {"y": images(3, 5)["x"] + 1}, images(4, 5) | {"y": images(4, 5)["x"]}],
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 4, batch_first=True)), "0", "2×16×3",
        [{"input": images(4, 7, 3)["x"]}, {"input": images(5, 2, 3)["x"]}],
    ),
}  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def gradients(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Outputs in training mode, and the gradient of every parameter from a sum that no output cancels in."""
    out = tensors(model.train()(**inputs))
    loss = sum((t * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in out if t.requires_grad)
    model.zero_grad()
    assert isinstance(loss, Tensor)
    loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.long
def test_what_was_guessed_binds_nobody(name: str) -> None:
    build, at, guess, batches = MODELS[name]
    torch.manual_seed(0)
    model = build()
    original = copy.deepcopy(model)
    aug = ga.rewrite(model, at, rate=0.0)
    (note,) = (note for note in aug.plan.notes if note.startswith("example_inputs: none given"))
    assert note.endswith(guess)
    for inputs in batches:
        aug.eval(), original.eval()
        with torch.no_grad():
            for found, expected in zip(tensors(aug(**inputs)), tensors(original(**inputs)), strict=True):
                assert torch.equal(found, expected)
        if min(t.shape[0] for t in tensors(inputs)) < 2:
            continue
        found, by_name = gradients(aug, inputs)
        expected, wanted = gradients(original, inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert by_name.keys() == wanted.keys()
        for key, gradient in wanted.items():
            torch.testing.assert_close(by_name[key], gradient, rtol=1e-5, atol=1e-6)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h) if h.mean() > 0 else self.head(-h)


class Listed(Branching):
    def forward(self, x: list[Tensor]) -> Tensor:  # type: ignore[override]
        return self.head(self.body(torch.stack(x)))


class Counted(Branching):
    def forward(self, x: Tensor, steps: int) -> Tensor:  # type: ignore[override]
        return self.head(self.body(x) * steps)


class Optional(Branching):
    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.head(self.body(x if y is None else y))


class Narrow(Branching):
    """Takes nothing that anybody would guess; counts, draws and writes before it says so."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.generator = 0, random.Random(0)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.generator.random()
        self.total.add_(1)
        with torch.no_grad():
            self.head.weight.mul_(2)
        h = self.body(x)
        if x.shape[0] != 17:
            raise ValueError("17 rows, please")
        return self.head(h)


NOTHING_FITS = "needs example_inputs: it takes none of the"
NOTHING_KNOWN = "needs example_inputs: neither its signature and its layers"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a list": (Listed, "body", NOTHING_KNOWN),
    "a number": (Counted, "body", NOTHING_KNOWN),
    "all optional": (Optional, "body", NOTHING_KNOWN),
    "no layer tells": (lambda: nn.Sequential(nn.ReLU(), nn.Sigmoid()), "0", NOTHING_KNOWN),
    "no usual size": (Narrow, "body", NOTHING_FITS),
    "control flow on data": (
        Branching,
        "body",
        r"branches on the data .*\(test_guessed_examples.py line \d+\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_nobody_can_guess_is_refused_and_nothing_of_it_moves(name: str) -> None:
    build, at, message = REFUSED[name]
    model = build()
    before, python = fingerprint(model), random.getstate()
    own = model.generator.getstate() if isinstance(model, Narrow) else None
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(model, at)
    assert fingerprint(model) == before
    assert random.getstate() == python
    if isinstance(model, Narrow):
        assert (model.calls, model.seen, model.generator.getstate()) == (0, [], own)


def test_a_wrong_guess_leaves_nothing_behind() -> None:
    model = HeadFirst()
    before = fingerprint(model)
    ga.rewrite(model, "conv")  # features of the head first, then images of 224×224 and 32×32
    assert fingerprint(model) == before


class Sized(Branching):
    """Does something else with sequences of more than eight."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h) if x.shape[0] < 8 else self.head(-h)


def test_what_the_code_asks_of_a_guess_is_checked_and_the_error_says_that_it_was_one() -> None:
    model = Sized()
    original = copy.deepcopy(model)
    aug = ga.rewrite(model, "body", rate=0.0)
    torch.testing.assert_close(aug(torch.ones(5, 4)), original(torch.ones(5, 4)), rtol=0, atol=0)
    for other in (torch.ones(9, 4), torch.ones(3, 5, 4)):
        with pytest.raises(AssumptionViolated, match=r"No example_inputs were given.*'body': 2×4.*pass exam"):
            aug.train()(other)
        assert torch.equal(aug.eval()(other), original.eval()(other))


def test_given_examples_are_no_guess() -> None:
    aug = ga.rewrite(Sized(), "body", example_inputs=torch.ones(4, 4))
    assert "example_inputs" not in str(aug.plan)
    with pytest.raises(AssumptionViolated) as caught:
        aug(torch.ones(9, 4))
    assert "guess" not in str(caught.value).replace(Path(__file__).name, "")


@pytest.mark.long
def test_a_cache_that_was_guessed_away_is_there_in_eval_mode() -> None:
    build, at, _, _ = MODELS["transformers gpt2"]
    model = build().eval()
    aug = ga.rewrite(model, at).eval()
    batch = ids(2, 4)
    found, expected = aug(**batch), model(**batch)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert expected.past_key_values is not None
    assert found.past_key_values is not None
    assert aug.train()(**batch).past_key_values is None  # as the plan says


class Masked(nn.Module):
    """Takes entries by a mask of its data and puts them back: how many of them are whose is told by no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_scatter(x > 0, x[x > 0] * 2)


@pytest.mark.long
def test_a_backward_is_sparse_where_that_is_proved_and_refused_where_it_would_be_tried() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    aug = ga.rewrite(model, "1", stop_grad=True)
    assert aug.plan.backward == "sparse"
    ga.verify(aug, images(8, 6)["x"])
    norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    streams = ga.rewrite(norm, "1", stop_grad=True, backward="sparse")
    assert "two streams" in streams.plan.reason
    ga.verify(streams, images(8, 6)["x"])
    unknown = nn.Sequential(nn.Linear(6, 6), Masked(), nn.Linear(6, 2))
    with pytest.raises(SparseBackwardError, match="no example_inputs to try"):
        ga.rewrite(unknown, "1", stop_grad=True, backward="sparse")


def test_a_dimension_of_the_rows_is_one_of_inputs_that_are_given() -> None:
    with pytest.raises(InvalidOption, match="pass example_inputs with it"):
        ga.rewrite(nn.Linear(4, 4), "input", rows=1)


@pytest.mark.long
def test_the_table_of_sites_says_what_it_was_made_with() -> None:
    table = ga.sites(torchvision.models.resnet18())
    assert {str(s): s.shape for s in table}["layer4"] == (2, 512, 7, 7)
    assert "taken from its layer 'conv1': 2×3×224×224" in str(table).splitlines()[0]


def test_a_misspelled_site_is_told_before_anything_is_guessed() -> None:
    with pytest.raises(ga.errors.SiteNotFound):
        ga.rewrite(Counted(), "bodi")
