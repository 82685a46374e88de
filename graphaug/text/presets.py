"""Named settings of published runs on text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIMCSE: dict[str, Any] = {
    "encoder": "bert-base-uncased",
    "epochs": 1,
    "batch_size": 64,
    "lr": 3e-5,
    "max_length": 32,
    "temperature": 0.05,
}
_MLM: dict[str, Any] = {**_SIMCSE, "mlm": True, "mlm_weight": 0.1, "mlm_rate": 0.15}

PRESETS: dict[str, dict[str, Any]] = {
    "simcse-bert-base": _SIMCSE,
    "simcse-bert-base-mlm": _MLM,
    "deepaug-bert-base-stop": {**_SIMCSE, "at": [8], "stop_grad": True, "rate": 0.125},
    "deepaug-bert-base": {**_SIMCSE, "at": [10], "rate": 0.25},
    "deepaug-bert-base-mlm-stop": {**_MLM, "at": [6], "stop_grad": True, "rate": 0.5, "batch_size": 128},
    "deepaug-bert-base-mlm": {**_MLM, "at": [10], "rate": 0.5, "lr": 5e-5, "batch_size": 128},
}
"""Unsupervised SimCSE, and the best settings that were published for Deep Augmentation.

The text, SimCSE's million sentences of Wikipedia, is not part of them.
"""

RATES: Mapping[tuple[bool, bool], float] = {
    (values.get("stop_grad", False), values.get("mlm", False)): values["rate"]
    for values in PRESETS.values()
    if "rate" in values
}
"""The published rates, by stop-gradient and masked language."""
