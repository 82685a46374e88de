"""A run of two processes, as `torchrun` starts it: ``torchrun … engine_processes.py OUT``."""

from __future__ import annotations

import sys

import torch
from resumed import images

from graphaug.contrastive.config import PretrainConfig
from graphaug.contrastive.pretrain import pretrain

# Without BatchNorm, and with dropout nowhere: the split over processes is then the only difference.
CONFIG = PretrainConfig(
    model="timm:test_convnext", epochs=2, batch_size=16, size=32, lr=0.05, accelerator="cpu"
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    pretrain(CONFIG, sys.argv[1], data=images())
