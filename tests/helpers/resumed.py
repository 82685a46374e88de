"""A small run in a process of its own, to be killed and resumed; imported by that process."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graphaug.errors import RunDirectoryError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.pretrain import pretrain

# Three steps an epoch and a checkpoint after every one, so that most kills fall into or between writes.
CONFIG = PretrainConfig(
    model="resnet18-cifar:4", epochs=8, batch_size=16, size=8, at=("layer3",), stop_grad=True, rate_end=0.2,
    checkpoint_every=0.3, snapshot_every=3, watch_every=2,
)  # fmt: skip


def images() -> ImageData:
    """Two classes, dark and bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(72) % 2
    pixels = torch.randint(0, 100, (72, 1, 8, 8), generator=generator) + 150 * labels.view(-1, 1, 1, 1)
    pixels = pixels.to(torch.uint8)
    train, test = ImageSet(pixels[:48], labels[:48]), ImageSet(pixels[48:], labels[48:])
    return ImageData("brightness", train, test, ("dark", "bright"), 8, mirror=False)


def run(out: str, kill_after: int | None = None) -> None:
    """Start the run in ``out``, or go on with it; with ``kill_after``, kill this process at the end of that epoch."""
    torch.set_num_threads(1)

    def on_epoch(line: dict[str, Any]) -> None:
        if line["epoch"] == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain(CONFIG, out, data=images(), resume=True, on_epoch=on_epoch)


def run_on_two(out: str, kill_after: int | None = None) -> None:
    """The same with two processes; a kill ends them and this one, which is to be one of its own then."""
    if kill_after is not None:
        os.setsid()

    def on_epoch(line: dict[str, Any]) -> None:
        if line["epoch"] == kill_after:
            os.killpg(0, signal.SIGKILL)

    # dropout draws from each process's own generator
    config = replace(
        CONFIG, epochs=2, devices=2, accelerator="cpu", rate_end=None, snapshot_every=0, backward="dense"
    )
    pretrain(config, out, data=images(), resume=True, on_epoch=on_epoch)


def run_on_full_disk(out: str) -> None:
    """Run until the disk is full behind the third epoch; the error goes to a file beside ``out``.

    A limit on the size of files fails a write half way, as a full disk does.
    """
    torch.set_num_threads(1)

    def fill(line: dict[str, Any]) -> None:
        if line["epoch"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))

    try:
        pretrain(CONFIG, out, data=images(), on_epoch=fill)
    except RunDirectoryError as error:
        Path(out).with_name("error.txt").write_text(str(error))
