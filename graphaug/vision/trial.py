"""Whether a model can be trained on images: it is tried on four of them, in both modes, before anything is written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.state import unchanged, undrawn
from graphaug.errors import ConfigError, an


def example_images(model: nn.Module, size: int) -> Tensor:
    """Four different images of one colour each."""
    device = next(model.parameters()).device
    example = torch.zeros(4, 3, size, size, device=device)
    return example + torch.arange(4, device=device).view(-1, 1, 1, 1) / 4


def check_model(model: nn.Module, size: int, name: str, width: int) -> None:
    """Refuse a model that cannot take the images, or does not give one row of its head's for each; it stays as it was.

    Args:
        model: with its head.
        size: height and width of the images.
        name: of the model, for errors.
        width: how many numbers the head gives for an image.

    Raises:
        ConfigError: as above.

    """
    images = example_images(model, size)
    for training in (False, True):
        with unchanged(model), undrawn(), torch.no_grad():
            returned = _returned(model.train(training), images, name)
        _check_returned(returned, len(images), name, width, " in training mode" if training else "")


def _returned(model: nn.Module, images: Tensor, name: str) -> Any:
    try:
        return model(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each architecture has errors of its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        size = images.shape[-1]
        raise ConfigError(
            f"{name} cannot take images of {size} × {size} pixels: {said}. It is given "
            "three channels, of grey images too: let its first layer take three. Else give the model's own size "
            f"(size=, --size), or another model.{_built_for(model, size, name)}"
        ) from error


def _built_for(model: nn.Module, size: int, name: str) -> str:
    """How a model of timm's is built for the size of the images, where it can be."""
    kind, _, own = name.partition(":")
    options = inspect.signature(type(model).__init__).parameters
    if kind != "timm" or "img_size" not in options:
        return ""
    patch = max(n for n in range(1, max(1, size // 8) + 1) if size % n == 0)  # eight or more patches a side
    patches = f", patch_size={patch}" if "patch_size" in options else ""
    return (
        f" Or build it for images of {size} × {size} pixels in a file of your own, net.py say, and name that with "
        "--model net.py:net:\n"
        f"    import timm\n    def net(): return timm.create_model({own!r}, img_size={size}{patches})"
    )


def _check_returned(returned: Any, images: int, name: str, width: int, when: str) -> None:
    """Refuse what is no tensor of shape ``(images, width)``, whatever ones stand behind that."""
    if isinstance(returned, Tensor):
        fits = returned.dim() > 1 and len(returned) == images and returned[0].numel() == width
        if fits and returned.is_floating_point():
            return
        found = (
            f"a tensor of shape {(*returned.shape,)} and type {str(returned.dtype).removeprefix('torch.')}"
        )
    else:
        found = f"{an(returned)}{_entries(returned)}"
    raise ConfigError(
        f"{name} returns {found} for {images} images{when}, and one tensor with a row for each of them is needed: what "
        f"its last linear layer gives, here of shape {(images, width)}, as a head of {width} outputs stands in that "
        "layer's place. Let its forward return that tensor alone."
    )


def _entries(returned: Any) -> str:
    """What is in a container, by names or by number."""
    if isinstance(returned, Mapping):
        return f" of {', '.join(repr(key) for key in returned)}" if returned else ", an empty one,"
    return f" of {len(returned)} entries" if isinstance(returned, (tuple, list)) else ""
