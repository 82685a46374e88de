"""A run of two processes, as `torchrun` starts it: ``torchrun … engine_processes.py OUT``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from resumed import images

from graphaug.errors import SiteNotFound
from graphaug.vision.config import PretrainConfig
from graphaug.vision.pretrain import pretrain

# Without BatchNorm, and with dropout nowhere: the split over processes is then the only difference.
CONFIG = PretrainConfig(
    model="timm:test_convnext", epochs=2, batch_size=16, size=32, lr=0.05, accelerator="cpu"
)


def fail(fabric: Any, emit: Any) -> None:
    """A job that fails in its second process, while the first waits for it."""
    if fabric.global_rank == 1:
        raise SiteNotFound("process 1 has no site")
    fabric.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretrain(CONFIG, sys.argv[1], data=images())
