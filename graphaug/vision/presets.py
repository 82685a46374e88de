"""Named settings of published runs on images."""

from __future__ import annotations

from typing import Any

_SIMCLR: dict[str, Any] = {
    "model": "resnet18-cifar",
    "epochs": 1500,
    "batch_size": 1024,
    "optimizer": "sgd",
    "lr": 0.5,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "supcontrast",
    "warmup": 10.0,
    "warmup_from": 0.01,
    "lr_floor": 1e-3,
    "loss": "nt_xent",
    "loss_scale": "supcontrast",
    "temperature": 0.5,
    "projection": 128,
    "crop": 0.2,
    "jitter": [0.4, 0.4, 0.4, 0.1],
    "jitter_p": 0.8,
    "gray_p": 0.2,
    "checkpoint_every": 10.0,
    "watch_every": 25,
}

PRESETS: dict[str, dict[str, Any]] = {
    "simclr-cifar10": {"data": "cifar10", **_SIMCLR},
    "simclr-cifar100": {"data": "cifar100", **_SIMCLR},
}
"""The paper's CIFAR runs: SupContrast's SimCLR, whose head for a ResNet-18 is 512-512-128."""
