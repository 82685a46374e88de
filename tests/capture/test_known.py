"""Closed code that does not run without data: the example's own integers are known, and what is made of them alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphaug as ga
from graphaug.errors import CaptureError


class Packing(nn.Module):
    """A recurrent encoder of sequences with lengths, which no fake tensors can run."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out: Tensor = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].sum(1)
        return out


class Reader(nn.Module):
    def __init__(self, lengths: Any) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(20, 6), Packing()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.lengths = lengths

    def forward(self, batch: Any) -> Tensor:
        ids = batch["ids"]
        out: Tensor = self.head(self.body(self.encoder(self.embed(ids), self.lengths(batch))))
        return out


def padded() -> dict[str, Tensor]:
    lengths = torch.tensor([2, 5, 3, 6])
    ids = torch.arange(1, 25).view(4, 6) % 19 + 1
    return {"ids": ids * (torch.arange(6) < lengths[:, None]), "lengths": lengths}


@pytest.mark.parametrize(
    "lengths",
    [lambda batch: batch["lengths"], lambda batch: (batch["ids"] != 0).sum(1).clamp(min=1)],
    ids=["given", "computed"],
)
def test_a_closed_module_that_packs_is_run_with_the_lengths_of_the_example(lengths: Any) -> None:
    model, batch = Reader(lengths), padded()
    before = copy.deepcopy(batch)
    aug = ga.rewrite(model, "body", stop_grad=True, example_inputs=(batch,))
    torch.testing.assert_close(batch, before)
    assert "pack_padded_sequence puts rows where their lengths say in 'encoder'" in aug.plan.reason
    ga.verify(aug, (batch,))
    assert [s.path for s in ga.sites(model, example_inputs=(batch,))][-2:] == ["body", "head"]
    other = {"ids": batch["ids"][:3, :5], "lengths": torch.tensor([1, 4, 2])}
    torch.testing.assert_close(aug.eval()(other), model.eval()(other))


def test_packing_in_opened_code_is_refused_with_the_way_out() -> None:
    message = (
        r"^Reader.forward cannot be captured: what it calls \(test_known.py line \d+\) needs the numbers in its "
        r"tensors, .*Keep it inside of a module that stays closed"
    )
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(Reader(lambda b: b["lengths"]), "encoder.rnn", example_inputs=(padded(),))


class Writes(Reader):
    """Opened code changes the lengths, so that they are not those of the input."""

    def forward(self, batch: Any) -> Tensor:
        lengths = batch["lengths"].clone()
        lengths.mul_(0)
        out: Tensor = self.head(self.body(self.encoder(self.embed(batch["ids"]), lengths + batch["lengths"])))
        return out


def test_what_is_written_in_place_is_not_known() -> None:
    with pytest.raises(CaptureError, match="needs the numbers in its tensors"):
        ga.rewrite(Writes(None), "body", example_inputs=(padded(),))
