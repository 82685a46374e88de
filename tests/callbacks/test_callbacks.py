"""Callbacks in the trainers that they are for, against what a loop written by hand would set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.callbacks.during import DuringTraining, counting, report
from graphaug.errors import InvalidOption, NotRewritten, SharedAcrossCut, SiteNotFound


@pytest.fixture(autouse=True)
def _foreign_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"graphaug\.")
        yield


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layer = lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())  # noqa: E731
    return nn.Sequential(layer(), layer(), layer(), nn.Linear(6, 2))


def rewritten(**options: Any) -> ga.AugmentedModule:
    return ga.rewrite(net(), "2", example_inputs=torch.randn(8, 6), **options)


def test_a_course_is_a_number_a_line_or_a_function() -> None:
    aug = rewritten()
    found = []
    for progress in (0.0, 0.25, 1.0):
        DuringTraining(rate=(0.8, 0.4), subset=lambda p: 0.5 + p / 4).before_step(aug, progress)
        found.append((aug.augmentations["2"]._rate, aug.augmentations["2"]._subset))
    assert found == [(0.8, 0.5), (pytest.approx(0.7), 0.5625), (pytest.approx(0.4), 0.75)]
    DuringTraining(rate=0.1).before_step(aug, 0.5)
    assert (aug.augmentations["2"]._rate, aug.augmentations["2"]._subset) == (0.1, 0.75)


def test_freezing_moves_up_layer_by_layer() -> None:
    aug = rewritten()
    during = DuringTraining(freeze=["0", "1"], freeze_until=0.5)
    optimizer = torch.optim.SGD(aug.parameters(), 0.1, weight_decay=0.1, momentum=0.9)
    moved = []
    for step in range(5):
        aug.train()
        during.before_step(aug, step / 4)
        before = [{k: v.clone() for k, v in aug.get_submodule(str(i)).state_dict().items()} for i in range(4)]
        optimizer.zero_grad()
        aug(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        moved.append(
            [
                any(
                    not torch.equal(v, before[i][k])
                    for k, v in aug.get_submodule(str(i)).state_dict().items()
                )
                for i in range(4)
            ]
        )  # weights and running statistics
    assert moved[0] == [True] * 4
    assert moved[1] == [False, True, True, True]  # at a quarter, half of the way to freeze_until
    assert moved[2:] == [[False, False, True, True]] * 3
    during.after_training()
    assert all(p.requires_grad for p in aug.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": 1.5}, InvalidOption, "rate=1.5"),
        ({"rate": (0.5, 0.2, 0.1)}, InvalidOption, "first and the last"),
        ({"subset": lambda p: 2 * p}, InvalidOption, "subset at progress 1"),
        ({"freeze": "0"}, InvalidOption, "a list"),
        ({"freeze": ["0"], "freeze_until": 0.0}, InvalidOption, "freeze_until"),
        ({"freeze": ["7"]}, SiteNotFound, "'7'"),
        ({"freeze": ["0", "1", "2", "3"]}, InvalidOption, "nothing to train"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        DuringTraining(**options).check(rewritten())


def test_a_model_without_augmentation_and_tied_weights_are_refused() -> None:
    with pytest.raises(NotRewritten, match=r"graphaug\.rewrite returned"):
        DuringTraining(rate=0.1).check(net())
    model = net()
    model[2][0].weight = model[0][0].weight
    with pytest.raises(SharedAcrossCut, match=r"2\.0\.weight"):
        DuringTraining(freeze=["0"]).check(ga.rewrite(model, "2"))


@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_the_share_that_was_augmented_is_counted(backward: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    aug = ga.rewrite(
        model, "1", subset=0.25, stop_grad=True, backward=backward, example_inputs=torch.randn(8, 6)
    ).train()
    before = aug.augmentations["1"].draw_rows
    with counting(aug) as counted:
        assert counted.share() is None
        for rows in (8, 12):
            aug(torch.randn(rows, 6))
        said = report(aug, counted)
    assert said["deep_augment/share"] == pytest.approx(5 / 20)
    assert (said["deep_augment/rate"], said["deep_augment/subset"]) == (0.5, 0.25)
    assert aug.augmentations["1"].draw_rows == before
    aug.eval()(torch.randn(8, 6))
    assert counted.share() is None


# --- Hugging Face Trainer -----------------------------------------------------------------------------


def bert_and_data() -> tuple[Any, Any, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **sizes))
    ids = torch.randint(5, 40, (16, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 2}
    return model, datasets.Dataset.from_dict({k: v.tolist() for k, v in batch.items()}), batch


def arguments(folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        folder, num_train_epochs=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
        logging_steps=1, **options,
    )  # fmt: skip


@pytest.mark.long
def test_in_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from graphaug.callbacks.trainer import DeepAugmentCallback

    model, rows, batch = bert_and_data()
    aug = ga.rewrite(model, 2, stop_grad=True, example_inputs={k: v[:4] for k, v in batch.items()})
    callback = DeepAugmentCallback(rate=(0.8, 0.1), freeze=["bert.embeddings", "bert.encoder.layer.0"])
    settings = arguments(tmp_path, save_strategy="no")
    trainer = transformers.Trainer(aug, settings, train_dataset=rows, callbacks=[callback])
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["deep_augment/rate"] for line in logs] == pytest.approx(
        [0.8 - 0.1 * step for step in range(8)]
    )
    assert {line["deep_augment/share"] for line in logs} == {0.5}
    frozen = [line["deep_augment/frozen_parameters"] for line in logs]
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    embeddings = count(model.bert.embeddings)
    assert frozen == [0] * 4 + [embeddings] * 3 + [embeddings + count(model.bert.encoder.layer[0])]
    assert all(p.requires_grad for p in model.parameters())
    assert "draw_rows" not in vars(next(iter(aug.augmentations.values())))


@pytest.mark.long
def test_checkpoints_of_the_trainer_are_those_of_the_plain_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, rows, batch = bert_and_data()
    aug = ga.rewrite(model, 2, stop_grad=True, example_inputs={k: v[:4] for k, v in batch.items()})
    from graphaug.callbacks.trainer import DeepAugmentCallback

    settings = arguments(tmp_path, save_steps=4)
    made = {"train_dataset": rows, "eval_dataset": rows, "callbacks": [DeepAugmentCallback(rate=(0.5, 0.1))]}
    trainer = transformers.Trainer(aug, settings, **made)
    trainer.train()
    whole = {name: value.clone() for name, value in aug.state_dict().items()}
    transformers.Trainer(aug, settings, **made).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(whole[name], value) for name, value in aug.state_dict().items())
    plain = type(model).from_pretrained(tmp_path / "checkpoint-8").eval()
    assert torch.equal(plain(**batch).logits, aug.eval()(**batch).logits)
    with_labels = trainer.evaluate()
    assert with_labels["eval_loss"] == pytest.approx(float(plain(**batch).loss), rel=1e-4)
    found = trainer.predict(rows.remove_columns("labels"))
    assert torch.allclose(torch.tensor(found.predictions), plain(**batch).logits, atol=1e-6)


# --- Lightning ----------------------------------------------------------------------------------------


def lightning_module() -> tuple[Any, Any]:
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = rewritten(stop_grad=True)
            self.seen: list[float] = []

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.seen.append(self.backbone.augmentations["2"]._rate)
            return self.backbone(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.backbone.parameters(), 0.01)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 6)), batch_size=8)
    return Module(), loader


def fit(folder: Path, module: Any, loader: Any, epochs: int, callback: Any, checkpoint: Any = None) -> Any:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger

    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=CSVLogger(folder), callbacks=[callback], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=checkpoint, **({"weights_only": True} if checkpoint else {}))
    return trainer


def test_a_lightning_module_that_is_rewritten_whole_is_told_where_to_do_it() -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Whole(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    (note,) = ga.rewrite(Whole(), at="backbone.1", example_inputs=torch.randn(8, 6)).plan.notes
    assert "is no LightningModule" in note
    assert "self.backbone = graphaug.rewrite(self.backbone, at='1', …)" in note


@pytest.mark.long
def test_in_lightning(tmp_path: Path) -> None:
    module, loader = lightning_module()
    from graphaug.callbacks.lightning import DeepAugmentCallback

    trainer = fit(tmp_path, module, loader, 2, DeepAugmentCallback(rate=(0.7, 0.0)))
    assert module.seen == pytest.approx([0.7 - 0.1 * step for step in range(8)])
    assert float(trainer.logged_metrics["deep_augment/share"]) == 0.5
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {k.removeprefix("backbone.") for k in state["state_dict"]} == set(net().state_dict())
    # a run that goes on without a schedule has the rate that the checkpoint had
    again, loader = lightning_module()
    fit(tmp_path, again, loader, 3, DeepAugmentCallback(), tmp_path / "last.ckpt")
    assert again.seen == pytest.approx([0.0] * 4)


def test_a_lightning_module_without_augmentation_is_refused(tmp_path: Path) -> None:
    module, loader = lightning_module()
    from graphaug.callbacks.lightning import DeepAugmentCallback

    module.backbone = ga.strip(module.backbone)
    with pytest.raises(NotRewritten, match="no Deep Augmentation"):
        fit(tmp_path, module, loader, 1, DeepAugmentCallback(rate=0.5))
