"""Bad input: examples and calls that cannot be right are refused, and the message says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from networks import ConvNet, TextNet, features, fingerprint, images, tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

pytestmark = pytest.mark.few(4)

ROOT = Path(__file__).resolve().parents[2]
FAKES_TAKE_FLOATS = pytest.mark.xfail(
    torch.__version__.startswith("2.11"),
    reason="torch 2.11 looks up floats in an embedding of fakes",
    strict=True,
)


class Encoder(nn.Module):
    """Token ids and an optional mask, and any other keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Tensor:
        h = self.first(self.embed(input_ids))
        if attention_mask is not None:
            h = h * attention_mask.unsqueeze(-1)
        return self.last(h)


class Nested(nn.Module):
    """One input, which is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, batch: Any) -> Tensor:
        return self.last(self.first(self.embed(batch["ids"])))


class Texts(nn.Module):
    """Makes its tensors of strings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, texts: list[str]) -> Tensor:
        return self.first(self.embed(torch.tensor([len(text) for text in texts])))


def ids(rows: int = 3, length: int = 5) -> Tensor:
    return torch.randint(0, 9, (rows, length), generator=torch.Generator().manual_seed(0))


def mask(rows: int = 3, length: int = 5) -> Tensor:
    return torch.ones(rows, length, dtype=torch.long)


# --- examples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "examples", "message"),
    [
        (Encoder(), {"input_id": ids()}, "'input_id', which Encoder.forward does not take. Did you mean 'input_ids'"),
        (Encoder(), {"input_ids": ids(), "attention_masks": mask()}, "Did you mean 'attention_mask'"),
        (Encoder(), {"attention_mask": mask()}, "lacks 'input_ids', which Encoder.forward requires"),
        (ConvNet(), {"image": images()}, "'image', which ConvNet.forward does not take.*It takes: x"),
        (ConvNet(), (images(), images()), "has 2 entries, but ConvNet.forward takes 1 positional inputs: x"),
        (ConvNet(), [], "lacks 'x'"),
        (ConvNet(), "an image", "is a str: give a tensor, a tuple of positional inputs, or a dict"),
        (ConvNet(), 3, "is an int: give a tensor"),
        (ConvNet(), images().numpy(), "is a ndarray: .* torch.from_numpy makes a tensor of it"),
        (ConvNet(), DataLoader(TensorDataset(images())), r"is a DataLoader: .* next\(iter\(loader\)\) gives a batch"),
        (ConvNet(), TensorDataset(images()), r"is a TensorDataset: .* next\(iter\(DataLoader\(dataset\)\)\)"),
        (ConvNet(), (images(), torch.zeros(3)), "2 entries, .* Leave out what the model is not called with, as labels"),
        (ConvNet(), (3, 8, 8), r"3 entries, .* For a shape give a tensor of it: torch.randn\(3, 8, 8\)"),
        (Nested(), {"ids": ids()}, r"'ids', which Nested.forward does not take.* 'batch', give it in a tuple: \(it,\)"),
        (Nested(), ["a", "b"], r"2 entries, .* If the list itself is 'batch', give it in a tuple: \(it,\)"),
    ],
    ids=[
        "key", "typo", "missing", "wrong key", "too many", "none", "text", "number", "numpy", "loader", "dataset",
        "labels", "shape", "dict", "list",
    ],
)  # fmt: skip
def test_examples_that_do_not_fit_the_forward(model: nn.Module, examples: Any, message: str) -> None:
    before = fingerprint(model)
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(model, 1, example_inputs=examples)
    assert fingerprint(model) == before


def test_a_dict_as_the_one_input() -> None:
    aug = ga.rewrite(Nested(), "first", example_inputs=({"ids": ids()},))
    assert aug({"ids": ids()}).shape == (3, 5, 2)


def test_a_model_of_strings_is_told_why_nothing_in_it_can_be_named() -> None:
    with pytest.raises(
        ga.errors.SiteNotFound, match=r"'first' does not depend on any tensor .* tokenizer\) outside"
    ):
        ga.rewrite(Texts(), "first", example_inputs=(["a", "bcd"],))
    assert "tokenizer" in str(ga.sites(Texts(), (["a", "bcd"],)))


def test_a_keyword_that_only_resembles_a_given_one_is_passed_on() -> None:
    examples = {"input_ids": ids(), "attention_mask": mask(), "attention_mask_2": mask()}
    aug = ga.rewrite(Encoder(), "first", example_inputs=examples)
    assert aug(**examples).shape == (3, 5, 2)


@pytest.mark.parametrize(
    ("model", "site", "one", "more"),
    [
        (ConvNet(), "layer1", {"x": images(1)}, {"x": images(4)}),
        (
            Encoder(),
            "first",
            {"input_ids": ids(1), "attention_mask": mask(1)},
            {"input_ids": ids(4), "attention_mask": mask(4)},
        ),
    ],
    ids=["image", "keywords"],
)
@pytest.mark.long
def test_an_example_of_one_row_is_taken_twice_and_the_plan_says_so(
    model: Any, site: str, one: Any, more: Any
) -> None:
    one, more = (tuple(v.values()) for v in (one, more))
    aug = ga.rewrite(model, site, example_inputs=one).eval()
    assert "the example has one row, which was taken twice" in str(aug.plan)
    model.eval()
    assert torch.equal(aug(*more), model(*more))
    assert torch.equal(aug(*one), model(*one))
    ga.verify(aug, more)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"has a batch of 0: give 1 row or more"):
        ga.rewrite(ConvNet(), "layer1", example_inputs=images(0))


def test_one_input_may_be_shared_by_all_rows() -> None:
    examples = {"input_ids": ids(), "attention_mask": mask(1)}
    model = Encoder().eval()
    aug = ga.rewrite(model, "first", example_inputs=examples).eval()
    assert torch.equal(aug(ids(4), mask(1)), model(ids(4), mask(1)))


@pytest.mark.parametrize(
    ("model", "site", "examples"),
    [
        (ConvNet(), "layer1.0", features()),
        (ConvNet(), "layer1.0", images().long()),
        (ConvNet(), "layer1.0", images(dtype=torch.float64)),
        pytest.param(TextNet(), "blocks.1", tokens().float(), marks=FAKES_TAKE_FLOATS),
        (TextNet(), "blocks.1", tokens()[:, :3]),
    ],
    ids=["rank", "integers", "precision", "floats", "length"],
)
def test_examples_that_the_model_itself_refuses(model: nn.Module, site: str, examples: Tensor) -> None:
    before = fingerprint(model)
    with pytest.raises(
        CaptureError, match=r"failed on example_inputs.*\(networks.py line \d+\): RuntimeError"
    ):
        ga.rewrite(model, site, example_inputs=examples)
    assert fingerprint(model) == before


# --- calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"input_ids": ids().float()}, "'input_ids' is torch.float32, but it was captured with a integer|an integer"),
        ({"input_ids": ids()[0]}, r"'input_ids' has 1 dimensions \(5,\), but it was captured with 2"),
        ({"input_ids": ids()[None]}, r"has 3 dimensions \(1, 3, 5\)"),
        ({"input_ids": ids().tolist()}, "'input_ids' is a list, but it was captured with a tensor"),
        ({"input_ids": ids(), "attention_mask": mask().float()}, "'attention_mask' is torch.float32"),
        ({"input_ids": ids(), "attention_mask": None}, "'attention_mask' is None"),
        ({"input_ids": ids(), "token_type_ids": ids()}, "captured without 'token_type_ids'.*pass it in example_inputs"),
    ],
    ids=["floats", "rank 1", "rank 3", "list", "mask", "none", "more"],
)  # fmt: skip
def test_calls_unlike_the_examples_are_refused(call: dict[str, Any], message: str) -> None:
    """In training; in eval mode the model itself runs, whatever it does with them."""
    aug = ga.rewrite(Encoder(), "first", example_inputs={"input_ids": ids(), "attention_mask": mask()})
    with pytest.raises(AssumptionViolated, match=message):
        aug(**{"attention_mask": mask(), **call})


@pytest.mark.parametrize("more", [{"attention_mask": None}, {"attention_mask": mask().float()}, {"other": 3}])
def test_in_eval_mode_whatever_the_model_accepts_is_accepted(more: dict[str, Any]) -> None:
    model = Encoder().eval()
    aug = ga.rewrite(model, "first", example_inputs={"input_ids": ids(), "attention_mask": mask()}).eval()
    call = {"attention_mask": mask(), **more}
    assert torch.equal(aug(ids(), **call), model(ids(), **call))


def test_another_precision_of_the_model_takes_its_own_inputs() -> None:
    model = ConvNet().eval()
    aug = ga.rewrite(model, "layer1", example_inputs=images()).double()
    x = images(dtype=torch.float64)
    assert torch.equal(aug(x), model(x))


# --- forwards that change their inputs --------------------------------------------------------------


class Mutates(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "method":
                x.mul_(2)
            case "operator":
                x *= 2
            case "index":
                x[:, 0] = 0
            case "slice":
                x[:, 1:] += 1
            case "alias":
                y = x
                y -= 1
        return self.last(self.first(x))


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize("how", ["method", "operator", "index", "slice", "alias"])
def test_a_forward_that_changes_its_input_changes_it_as_before(how: str, examples: bool) -> None:
    """The example itself stays as it was."""
    model, example = Mutates(how).eval(), features()
    aug = ga.rewrite(model, "first", example_inputs=example if examples else None)
    assert torch.equal(example, features())
    for rows in (2, 5):
        x, y = features(rows, seed=1), features(rows, seed=1)
        assert torch.equal(aug(x), model(y))
        assert torch.equal(x, y)
        assert not torch.equal(x, features(rows, seed=1))


# --- devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.long
def test_a_model_on_the_meta_device_is_captured(device: str) -> None:
    with torch.device("meta"):
        model = ConvNet()
    aug = ga.rewrite(model, "layer1.0.add", stop_grad=True, example_inputs=images().to(device))
    assert aug.plan.sites[0].shape == (6, 6, 8, 8)
    assert "compared" not in str(aug.plan)  # in the shadow, on small tensors of its shapes
    model.to_empty(device="cpu").load_state_dict(ConvNet().state_dict())
    x = images(4)
    assert torch.equal(aug.eval()(x), model.eval()(x))


@pytest.mark.parametrize("which", ["layer2", "stem"])
def test_a_model_partly_on_the_meta_device_is_captured(which: str) -> None:
    model = ConvNet()
    getattr(model, which).to("meta")
    plan = ga.rewrite(model, "layer1", example_inputs=images(), dry_run=True)
    assert plan.sites[0].shape == (6, 6, 8, 8)


@pytest.mark.long  # half a minute
def test_seven_billion_parameters_on_the_meta_device_take_no_memory() -> None:
    """Nothing is computed and nothing is stored; weights and activations would take 27 GB."""
    pytest.importorskip("transformers")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/meta_capture.py"), "meta", "cpu"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    for found in map(json.loads, done.stdout.splitlines()[-2:]):
        print(found)
        assert found["parameters"] > 6.7e9
        assert found["megabytes"] < 1000
        assert found["nodes"] < 100
        assert found["shape"] == [2, 2048, 4096]
        assert found["meta"]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_checkpoints_around_opened_code_are_refused(kind: str, reentrant: bool) -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                function = block if kind == "module" else lambda h, block=block: block(h)
                x = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)
            return x

    with pytest.raises(CaptureError, match=r"torch.utils.checkpoint .* \(test_bad_examples.py line \d+\)"):
        ga.rewrite(Saving(), "blocks[1]", example_inputs=torch.randn(4, 4))


class NamesItsInputSelf(nn.Module):
    def __init__(this) -> None:  # noqa: N805
        super().__init__()
        this.a, this.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(this, self: Tensor) -> Tensor:  # noqa: N805
        return this.b(this.a(self))


@pytest.mark.parametrize("given", [torch.ones(2, 4), {"self": torch.ones(2, 4)}], ids=["by place", "by name"])
def test_an_input_with_the_name_of_the_model_is_refused(given: Any) -> None:
    with pytest.raises(CaptureError, match=r"NamesItsInputSelf\.forward has an input that is called 'self'"):
        ga.rewrite(NamesItsInputSelf(), at="a", example_inputs=given)
