"""In the hands of its users: trainers, adapters, mixed precision, checkpoints, and several processes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from networks import ConvNet, images
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

pytestmark = pytest.mark.few(1)

transformers = pytest.importorskip("transformers")
WORDS = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *(f"w{i}" for i in range(35))]


@pytest.fixture(autouse=True)
def _foreign_warnings() -> Iterator[None]:
    """Deprecations inside these tools are theirs; ours are errors as everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"graphaug\.")
        yield


def config(**options: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
    }
    return transformers.BertConfig(**{**sizes, **options})


def bert(cls: str = "BertModel", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, cls)(config(**options))


def text(rows: int = 4, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(WORDS), (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def labelled(rows: int = 4, **options: Any) -> dict[str, Tensor]:
    return {**text(rows, **options), "labels": torch.arange(rows) % 2}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- what transformers users expect of a model ------------------------------------------------------


@pytest.mark.long
def test_a_rewritten_model_has_the_conveniences_of_the_original(tmp_path: Path) -> None:
    model = bert()
    aug = ga.rewrite(model, 2, example_inputs=text())
    assert aug.config is model.config
    assert aug.device == model.device
    assert aug.dtype == model.dtype
    aug.to(torch.float64)
    assert aug.dtype == torch.float64 == model.dtype
    aug.save_pretrained(tmp_path)
    again = transformers.BertModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert not changed(weights(again), weights(aug))


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        ("BertModel", "BaseModelOutputWithPoolingAndCrossAttentions"),
        ("BertForMaskedLM", "MaskedLMOutput"),
        ("BertForSequenceClassification", "SequenceClassifierOutput"),
    ],
)
@pytest.mark.long
def test_outputs_keep_their_type(cls: str, kind: str) -> None:
    model = bert(cls).eval()
    aug = ga.rewrite(model, 2, example_inputs=text())
    other = text(3, 5, seed=1)
    for mode in (True, False):
        found = aug.train(mode)(**other)
        assert type(found).__name__ == kind
        assert type(found) is type(model(**other))
        assert torch.equal(found[0], next(iter(found.values())))
    assert torch.equal(found[0], model(**other)[0])


@pytest.mark.long
def test_a_configuration_that_a_forward_writes_into_is_left_alone() -> None:
    """transformers notes the kind of problem that labels pose; the second capture would take another way."""
    model = bert("BertForSequenceClassification")
    before = dict(vars(model.config))
    aug = ga.rewrite(model, 2, stop_grad=True, example_inputs=labelled())
    assert vars(model.config) == before
    assert aug.plan.backward == "sparse", aug.plan.reason


@pytest.mark.long
def test_the_forward_has_the_signature_of_the_original() -> None:
    """All of it but ``**``, which the Trainer takes for leave to give ``num_items_in_batch``."""
    model = bert("BertForSequenceClassification")
    aug = ga.rewrite(model, 2, example_inputs=labelled())
    expected = [
        p for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    for forward in (aug.forward, type(aug).forward):
        assert [
            p for n, p in inspect.signature(forward).parameters.items() if n != "self"
        ] == expected  # names, defaults and kinds


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"labels": torch.zeros(4, dtype=torch.long)}, "labels"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"output_attentions": True}, "output_attentions"),
        ({"return_dict": False}, "return_dict"),
        ({"token_type_ids": torch.zeros(4, 7, dtype=torch.long)}, "token_type_ids"),
        ({"inputs_embeds": torch.zeros(4, 7, 16)}, "inputs_embeds"),
    ],
)
@pytest.mark.long
def test_an_optional_input_that_was_not_captured_is_refused_with_the_fix(more: Any, name: str) -> None:
    aug = ga.rewrite(bert("BertForSequenceClassification"), 2, example_inputs=text())
    with pytest.raises(AssumptionViolated, match=f"captured without '{name}'.*pass it in example_inputs"):
        aug(**text(), **more)
    aug(**text(), labels=None)  # nothing was given


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.long
def test_the_fix_in_that_message_works(called_before: bool) -> None:
    """Hidden states are collected by hooks, which transformers installs in the first call that wants them."""
    model = bert("BertForSequenceClassification").eval()
    if called_before:
        model(**text(), output_hidden_states=True)
    hooks = len(model.bert.encoder.layer[0]._forward_hooks)
    examples = {**labelled(), "output_hidden_states": True}
    aug = ga.rewrite(model, 2, example_inputs=examples, allow_bypass=True)  # hidden states are outputs
    assert len(model.bert.encoder.layer[0]._forward_hooks) == hooks
    other = labelled(5, seed=2)
    found, expected = aug(**other, output_hidden_states=True), model(**other, output_hidden_states=True)
    assert torch.equal(found.loss, expected.loss)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    with pytest.raises(AssumptionViolated, match="lacks"):  # in eval mode the model itself would run
        aug.train()(**text())


# --- Hugging Face Trainer ---------------------------------------------------------------------------


def test_trainer_trains_saves_and_reloads_into_the_plain_model(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = labelled(8)
    columns = {**{k: v.tolist() for k, v in rows.items()}, "unused": list(range(8))}
    model = bert("BertForSequenceClassification")
    aug = ga.rewrite(model, 2, stop_grad=True, example_inputs=labelled())
    before = weights(model)
    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(aug, arguments, train_dataset=datasets.Dataset.from_dict(columns))
    result = trainer.train()
    assert result.global_step == 2
    assert result.training_loss > 0
    assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"} <= changed(
        before, weights(model)
    )
    evaluated = trainer.evaluate(datasets.Dataset.from_dict(columns))
    assert evaluated["eval_loss"] == pytest.approx(float(model.eval()(**rows).loss), rel=1e-4)

    trainer.save_model(tmp_path / "saved")
    from safetensors.torch import load_file

    plain = bert("BertForSequenceClassification")
    plain.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert not changed(weights(plain), weights(aug))
    assert torch.equal(plain.eval()(**rows).logits, aug.eval()(**rows).logits)


# --- sentence-transformers --------------------------------------------------------------------------


def sentence_model(folder: Path) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=16,
    )  # fmt: skip
    bert().save_pretrained(folder)
    fast.save_pretrained(folder)
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")  # with mean pooling


@pytest.mark.long
def test_sentence_transformers_trains_encodes_and_saves(tmp_path: Path) -> None:
    model = sentence_model(tmp_path / "encoder")
    datasets = pytest.importorskip("datasets")
    import sentence_transformers as st
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    sentences = [f"w{i} w{i + 1} w{i + 2}" for i in range(8)]
    examples = model[0].preprocess(sentences[:2])
    inputs = {k: v for k, v in examples.items() if isinstance(v, Tensor)}
    original = model[0].model
    expected = model.encode(sentences)
    model[0].model = ga.rewrite(original, 2, stop_grad=True, example_inputs={**inputs, "return_dict": True})
    assert torch.equal(torch.tensor(model.encode(sentences)), torch.tensor(expected))

    before = weights(original)
    pairs = datasets.Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})
    arguments = st.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    trainer = st.SentenceTransformerTrainer(model, arguments, pairs, loss=MultipleNegativesRankingLoss(model))
    assert trainer.train().global_step == 2
    assert "encoder.layer.0.attention.self.query.weight" in changed(before, weights(original))

    trained = torch.tensor(model.encode(sentences))
    assert not torch.equal(trained, torch.tensor(expected))
    model.save(str(tmp_path / "saved"))
    reloaded = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert type(reloaded[0].model) is transformers.BertModel
    torch.testing.assert_close(torch.tensor(reloaded.encode(sentences)), trained)


# --- PEFT -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_lora_applied_before_rewriting_trains_and_saves_the_adapter_only(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(bert("BertForSequenceClassification"), lora)
    aug = ga.rewrite(
        model, "base_model.model.bert.encoder.layer.1", stop_grad=True, example_inputs=labelled()
    )
    batch = labelled(6, seed=3)
    assert torch.equal(aug.eval()(**batch).logits, model.eval()(**batch).logits)
    aug.train()
    before = weights(model)
    trained = [p for p in aug.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    aug(**batch).loss.backward()
    optimizer.step()
    moved = changed(before, weights(aug))
    assert moved
    assert all("lora_" in name for name in moved)
    assert {name.split(".")[5] for name in moved} == {"0", "1", "2"}

    aug.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bert("BertForSequenceClassification"), tmp_path)
    assert torch.equal(again.eval()(**batch).logits, aug.eval()(**batch).logits)


# --- checkpointing, precision, memory formats -------------------------------------------------------


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    output.square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.long
def test_gradient_checkpointing_changes_no_gradient(when: str, reentrant: bool) -> None:
    batch = text(6, seed=1)
    found = []
    for checkpointed in (False, True):
        model = bert()
        enable = lambda m=model: m.gradient_checkpointing_enable({"use_reentrant": reentrant})  # noqa: E731
        if checkpointed and when == "before":
            enable()
        aug = ga.rewrite(model, 2, stop_grad=True, backward="dense", example_inputs=text())
        if checkpointed and when == "after":
            enable()
        calls = []
        model.encoder.layer[0].attention.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        torch.manual_seed(5)
        found.append(gradients(model, aug(**batch).last_hidden_state))
        assert len(calls) == (2 if checkpointed else 1)  # computed again in the backward
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], msg=name)


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.long
def test_bf16_autocast(stop_grad: bool) -> None:
    model = bert().eval()
    aug = ga.rewrite(model, 2, stop_grad=stop_grad, example_inputs=text())
    batch = text(6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = model(**batch), aug(**batch)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        out = aug.train()(**batch).last_hidden_state
    grads = gradients(model, out.float())
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads.values())
    assert grads["encoder.layer.0.attention.self.query.weight"].abs().sum() > 0


@pytest.mark.long
def test_channels_last_stays_channels_last() -> None:
    torch.manual_seed(0)
    model = ConvNet().to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    aug = ga.rewrite(model, "layer1", stop_grad=True, example_inputs=x)
    seen = []
    model.layer2.register_forward_hook(
        lambda _, args, __: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    gradients(model, aug(x))
    assert all(seen)
    assert seen
    assert torch.equal(aug.eval()(x), model.eval()(x))


# --- several processes ------------------------------------------------------------------------------


SETUPS = [(kind, stop_grad) for kind in ("ddp", "fsdp") for stop_grad in (False, True)]


@pytest.mark.long
def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_processes.run, (str(tmp_path), SETUPS), nprocs=2)
    for kind, stop_grad in SETUPS:
        losses, expected = two_processes.single_process(stop_grad)
        for rank in (0, 1):
            loss, found = torch.load(tmp_path / f"{kind}_{stop_grad}_{rank}.pt")
            assert loss == pytest.approx(losses[rank], rel=1e-5), kind
            assert found.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(
                    found[name], expected[name], rtol=1e-4, atol=1e-6, msg=f"{kind}: {name}"
                )
