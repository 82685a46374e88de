"""Heads in the classifier's place, and what comes from lightly, which is an extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from graphaug.errors import ConfigError, an


def need_lightly(what: str) -> None:
    """Raise ``ConfigError`` unless lightly can be imported; ``what`` needs it."""
    lightly("lightly.models.modules.heads", what)


def lightly(module: str, what: str) -> Any:
    """A module of lightly's.

    Raises:
        ConfigError: lightly, or something that it needs, is not installed.

    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what} takes heads and losses from lightly, which cannot be imported ({error}): "
            "pip install 'graphaug[methods]', or pip install 'lightly>=1.5'."
        ) from error


def lightly_head(name: str, classifier: nn.Module, hidden: int | None, projection: int) -> nn.Module:
    """One of lightly's projection heads for the place of a linear classifier: features → ``hidden`` → ``projection``.

    Raises:
        ConfigError: the classifier is a convolution, for whose maps these heads are not made.

    """
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(
            f"the model's classifier is {an(classifier)}, and {name} takes the features of a linear one: "
            "use another model, or method='simclr', which has a head of convolutions."
        )
    made = getattr(lightly("lightly.models.modules.heads", name), name)
    head: nn.Module = made(classifier.in_features, hidden, projection)
    return head
