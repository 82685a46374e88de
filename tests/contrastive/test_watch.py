"""TensorBoard's files where it is installed, and nothing where it is not."""

import sys
from types import ModuleType

import pytest

from graphaug.contrastive.runs.watch import Board


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = Board(tmp_path / "tensorboard")
    board({"epoch": 1, "loss": 2.0})
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_metrics_go_to_tensorboard_by_epoch(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = Board(tmp_path / "board", purge=4)
    board({"epoch": 4, "loss": 2.0, "knn": 0.5})
    board.close()
    assert written == [(str(tmp_path / "board"), 4), ("loss", 2.0, 4), ("knn", 0.5, 4), "closed"]


def test_tensorboard_itself_reads_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path)
    for epoch in (1, 2):
        board({"epoch": epoch, "loss": 1 / epoch})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
