"""The Trainer of Hugging Face transformers: which columns of a data set reach a rewritten model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import graphaug as ga
from graphaug.errors import AssumptionViolated, SparseBackwardLost, UnknownOption

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _foreign_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"graphaug\.")
        yield


def bert(cls: str = "BertForSequenceClassification") -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return getattr(transformers, cls)(transformers.BertConfig(vocab_size=50, **sizes))


def batch(rows: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (rows, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 2}


def only(*names: str) -> dict[str, Tensor]:
    return {name: batch()[name] for name in names}


def trainer_of(model: Any, folder: Path, **options: Any) -> Any:
    rows = datasets.Dataset.from_dict({name: value.tolist() for name, value in batch().items()})
    arguments = transformers.TrainingArguments(
        folder, max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no", **options,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("examples", "missing"),
    [
        (None, "attention_mask"),
        (only("input_ids", "labels"), "attention_mask"),
        (only("input_ids", "attention_mask"), "labels"),
    ],
)
def test_a_column_that_was_not_captured_is_refused_and_not_dropped(
    examples: Any, missing: str, tmp_path: Path
) -> None:
    aug = ga.rewrite(bert(), 2, stop_grad=True, example_inputs=examples)
    trainer = trainer_of(aug, tmp_path)
    with pytest.raises(AssumptionViolated, match=f"captured without '{missing}'.*pass it in example_inputs"):
        trainer.train()
    whole = trainer.evaluate()  # eval mode takes what the original takes
    assert whole["eval_loss"] == pytest.approx(float(aug.original.eval()(**batch()).loss), rel=1e-4)


@pytest.mark.long
def test_the_mask_counts_and_inputs_of_the_trainer_itself_are_not_given(tmp_path: Path) -> None:
    """At rate 0 the loss is the plain model's, over the same columns; accumulated steps weigh the same."""
    losses = []
    for rewritten in (False, True):
        model = bert().eval()
        model.train = lambda mode=True, m=model: m  # no dropout of its own
        if not rewritten:
            model.accepts_loss_kwargs = (
                False  # its loss ignores what the Trainer would give, and counts double then
            )
        else:
            model = ga.rewrite(model, 2, rate=0.0, example_inputs=batch())
        trainer = trainer_of(model, tmp_path, gradient_accumulation_steps=2)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.long
def test_predicting_without_labels(tmp_path: Path) -> None:
    aug = ga.rewrite(bert(), 2, stop_grad=True, example_inputs=batch())
    trainer = trainer_of(aug, tmp_path)
    found = trainer.predict(trainer.eval_dataset.remove_columns("labels")).predictions
    expected = aug.original.eval()(**only("input_ids", "attention_mask")).logits
    torch.testing.assert_close(torch.tensor(found), expected)


@pytest.mark.long
def test_an_adapter_forwards_what_it_does_not_name(tmp_path: Path) -> None:
    """PEFT's forward names no ``token_type_ids``; the Trainer looks at the model inside, and so has to find them."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    aug = ga.rewrite(model, "base_model.model.bert.encoder.layer.1", example_inputs=batch())
    trainer = trainer_of(aug, tmp_path)
    kinds = [[1] * 7] * len(trainer.train_dataset)
    trainer.train_dataset = trainer.train_dataset.add_column("token_type_ids", kinds)
    with pytest.raises(AssumptionViolated, match="captured without 'token_type_ids'"):
        trainer.train()


def test_an_option_that_there_is_not_is_answered_with_the_name_of_the_callback() -> None:
    from graphaug.callbacks.trainer import DeepAugmentCallback

    with pytest.raises(
        UnknownOption, match=r"^DeepAugmentCallback has no option 'rates'\. Did you mean 'rate'"
    ):
        DeepAugmentCallback(rates=(0.5, 0.1))


def test_what_was_captured_beside_the_named_inputs_is_in_the_signature() -> None:
    class Open(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

        def forward(
            self, x: Tensor, scale: float = 1.0, *rest: Tensor, flag: bool = False, **more: Tensor
        ) -> Tensor:
            return self.b(self.a(x) * scale + sum(rest) + more.get("shift", 0.0))

    x = torch.randn(4, 3)
    by_name = ga.rewrite(Open(), "a", example_inputs={"x": x, "shift": x})
    assert str(inspect.signature(by_name.forward)).startswith("(x: ")
    assert list(inspect.signature(by_name.forward).parameters) == ["x", "scale", "rest", "flag", "shift"]
    by_place = ga.rewrite(Open(), "a", example_inputs=(x, 2.0, x, x))
    assert list(inspect.signature(by_place.forward).parameters) == ["x", "scale", "rest", "flag"]
    torch.testing.assert_close(by_place.eval()(x, 2.0, x, x), by_place.original.eval()(x, 2.0, x, x))


@pytest.mark.long
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_the_trainer_leaves_a_sparse_step_sparse(
    reentrant: bool, tmp_path: Path
) -> None:
    """The Trainer sets attributes and adds a hook on the embeddings; losses and weights are those without."""
    weights, losses = [], []
    for options in (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        aug = ga.rewrite(bert(), 2, stop_grad=True, example_inputs=batch())
        calls = tmp_path / "calls"  # a list would be state that the prefix keeps
        layer = aug.original.bert.encoder.layer[0].attention.self.query

        def counted(x: Tensor, m: torch.nn.Module = layer, calls: Path = calls) -> Tensor:
            with calls.open("a") as file:
                file.write(".")
            return torch.nn.Linear.forward(m, x)

        layer.forward = counted
        aug = ga.rewrite(ga.strip(aug), 2, stop_grad=True, example_inputs=batch())
        calls.write_text("")
        losses.append(trainer_of(aug, tmp_path, learning_rate=1e-2, **options).train().training_loss)
        weights.append({name: p.detach().clone() for name, p in aug.named_parameters()})
        assert aug.plan.backward == "sparse", aug.plan.reason
        # of two parts in two steps; those with a gradient once more
        assert len(calls.read_text()) == (6 if options else 4)
    assert losses[0] == pytest.approx(losses[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


@pytest.mark.long
def test_another_hook_is_one() -> None:
    aug = ga.rewrite(bert(), 2, stop_grad=True, example_inputs=batch()).train()
    aug.original.bert.embeddings.word_embeddings.register_forward_hook(lambda *_: None)
    with pytest.warns(SparseBackwardLost, match="another hook"):
        aug(**batch())
