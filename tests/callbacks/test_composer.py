"""A rewritten backbone in MosaicML's composer, where it is installed.

composer 0.32.1 asks for a torch before 2.7.1 and this library for a later one: `make install` does not bring it, and
`make test-composer` runs this with composer installed without its own requirement of torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.contrastive.losses import nt_xent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    composer = pytest.importorskip("composer", reason="composer asks for a torch before 2.7.1")

pytestmark = pytest.mark.filterwarnings("ignore")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def fit(model: Any, folder: Path, epochs: int, **options: Any) -> None:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(32, 8))
    loader = torch.utils.data.DataLoader(data, 8)
    trainer = composer.Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        max_duration=f"{epochs}ep",
        save_folder=str(folder),
        device="cpu",
        seed=0,
        progress_bar=False,
        **options,
    )
    trainer.fit()
    trainer.close()


def simclr(plain: nn.Module, subset: float = 0.5) -> Any:
    class SimCLR(composer.ComposerModel):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = ga.rewrite(
                plain, "2", subset=subset, stop_grad=True, example_inputs=torch.randn(8, 8)
            )

        def forward(self, batch: list[Tensor]) -> Tensor:
            return self.backbone(torch.cat([batch[0], batch[0] + 0.1]))

        def loss(self, outputs: Tensor, batch: list[Tensor]) -> Tensor:
            return nt_xent(*outputs.chunk(2))

    return SimCLR()


def test_it_trains_the_plain_model_s_weights(tmp_path: Path) -> None:
    plain, before = network(), network()
    model = simclr(plain)
    fit(model, tmp_path, 2)
    assert all(not torch.equal(a, b) for a, b in zip(plain.parameters(), before.parameters(), strict=True))
    assert {k.removeprefix("backbone.") for k in model.state_dict()} == set(plain.state_dict())


def test_the_gradient_stops_where_it_was_told_to(tmp_path: Path) -> None:
    plain, before = network(), network()
    fit(simclr(plain, subset=1.0), tmp_path, 2)
    moved = [not torch.equal(a, b) for a, b in zip(plain.parameters(), before.parameters(), strict=True)]
    assert moved == [False] * 4 + [True] * 2  # the layers up to the cut, and the one behind it


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, first, second = network(), network(), network()
    fit(simclr(whole), tmp_path / "whole", 3)
    fit(simclr(first), tmp_path / "parts", 2)
    fit(simclr(second), tmp_path / "parts", 3, load_path=str(tmp_path / "parts/latest-rank0.pt"))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
