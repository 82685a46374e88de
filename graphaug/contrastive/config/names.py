"""Names of settings that do not exist, with what was meant."""

from __future__ import annotations

from collections.abc import Collection

from graphaug.errors import meant, nearest

ALIASES = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "min_lr": "lr_floor",
    "batch": "batch_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "warmup_epochs": "warmup",
    "tau": "temperature",
    "dataset": "data",
    "arch": "model",
    "backbone": "model",
    "layer": "at",
    "site": "at",
    "sites": "at",
    "p": "rate",
    "dropout_rate": "rate",
    "detach": "stop_grad",
    "stop_gradient": "stop_grad",
    "num_devices": "devices",
    "gpus": "devices",
    "image_size": "size",
    "img_size": "size",
    "random_seed": "seed",
}
"""What other programs call a setting."""


def setting_meant(wrong: str, known: Collection[str]) -> str:
    """Return ``" Did you mean 'lr'?"``, or all there are where no setting is near."""
    told = ALIASES.get(wrong.lower().replace("-", "_"))
    near = [told] if told in known and told is not None else nearest(wrong, known)
    return meant(near) or f" There are {', '.join(sorted(known))}."
