"""Encoders: torchvision's classification models, with their classifier exchanged for a projection head.

The model itself stays whole: its classifier is put aside while the head is in its place, and is put back for saving,
so that the weights load into the plain torchvision model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.errors import ConfigError, UnsupportedModel, did_you_mean
from graphaug.vision.user_models import is_own, own_model, refuse_file_alone

CIFAR_RESNET = "resnet18-cifar"
_CIFAR_RESNET = re.compile(r"resnet18-cifar(?::(?P<width>[1-9]\d*))?")

# These build their training-time side outputs, which plain torchvision has in its state_dict too.
_AUXILIARY = ("googlenet", "inception_v3")


def build_model(name: str) -> nn.Module:
    """Build an untrained classification model with torchvision's 1000 classes.

    Args:
        name: a torchvision classification model; ``resnet18-cifar`` (3×3 stem with stride 1, no max-pool: the variant
            for 32×32 images); ``resnet18-cifar:WIDTH``, the same with WIDTH channels in its first stage instead of 64;
            ``timm:NAME``; or ``FILE.py:NAME``, the user's own.

    Raises:
        ConfigError: no such model, or timm is not installed.

    """
    if is_own(name):
        return own_model(name)
    if match := _CIFAR_RESNET.fullmatch(name):
        return _cifar_resnet(int(match["width"] or 64))
    if name.startswith(f"{CIFAR_RESNET}:"):
        raise ConfigError(
            f"{name!r}: the width must be a whole number of at least 1, not {name.partition(':')[2]!r}."
        )
    if name.startswith("timm:"):
        return _timm_model(name.removeprefix("timm:"))
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        refuse_file_alone(name)
        raise ConfigError(
            f"no model is called {name!r}.{did_you_mean(name, [*known, CIFAR_RESNET])} There are torchvision's "
            f"classification models, {CIFAR_RESNET}, timm:NAME, and your own as FILE.py:NAME."
        )
    # Without the option both warn that their initialisation will change.
    options: dict[str, Any] = {"init_weights": True} if name in _AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    if name in _AUXILIARY:
        model.aux_logits = False  # type: ignore[assignment]  # return the output alone in training mode too
    return model


def _cifar_resnet(width: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    class CifarResNet(ResNet):  # type: ignore[misc]
        """torchvision's ResNet with another width, which it fixes at 64."""

        def _make_layer(
            self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
        ) -> Any:
            if planes == 64:
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, blocks, stride, dilate)

    model = (ResNet if width == 64 else CifarResNet)(BasicBlock, [2, 2, 2, 2])
    model.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    if width != 64:
        model.fc = nn.Linear(8 * width, model.fc.out_features)
    built: nn.Module = model
    return built


def _timm_model(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("timm models need the package timm, which is not installed.") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    model: Any = timm.create_model(name, pretrained=False)
    if getattr(model, "num_classes", None) == 0:  # a model of features only
        model.reset_classifier(1000)
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    if found is not None and model.get_submodule(classifier_path(model)) is not found:
        raise ConfigError(
            f"timm's {name} does not end in one linear layer that gives the class scores, which the projection head "
            "could replace: use another model."
        )
    built: nn.Module = model
    return built


def classifier_path(model: nn.Module) -> str:
    """Path of the layer that gives the class scores: the last linear layer, or the last 1×1 convolution.

    Raises:
        UnsupportedModel: the model has neither.

    """
    for kind in (nn.Linear, nn.Conv2d):
        paths = [path for path, module in model.named_modules() if isinstance(module, kind)]
        if paths:
            return str(paths[-1])
    raise UnsupportedModel(
        f"{type(model).__name__} has neither a linear layer nor a 1×1 convolution that could be its classifier, whose "
        "place the projection head takes: let it end in one, such as nn.Linear(features, classes)."
    )


def feature_width(model: nn.Module) -> int:
    """How many features enter the classifier."""
    layer = model.get_submodule(classifier_path(model))
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def projection_head(classifier: nn.Module, dim: int = 128, hidden: int | None = None) -> nn.Sequential:
    """SimCLR's two-layer MLP for the place of ``classifier``: features → ``hidden`` → ReLU → ``dim``.

    ``hidden`` defaults to the number of features, as in SimCLR. Where the classifier is a 1×1 convolution (SqueezeNet)
    the head is of convolutions too.
    """
    if isinstance(classifier, nn.Conv2d):
        width = classifier.in_channels
        hidden = hidden or width
        return nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))
    assert isinstance(classifier, nn.Linear)
    width = classifier.in_features
    hidden = hidden or width
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


@contextmanager
def classifier_replaced(
    model: nn.Module, replacement: nn.Module, path: str | None = None
) -> Iterator[nn.Module]:
    """Within the context ``model`` has ``replacement`` in the place of its classifier; afterwards its own again.

    ``path`` names the place, where a head of several layers is in it already.
    """
    path = path or classifier_path(model)
    own = model.get_submodule(path)
    model.set_submodule(path, replacement)
    try:
        yield model
    finally:
        model.set_submodule(path, own)


@torch.no_grad()
def features(
    model: nn.Module, images: Tensor, view: nn.Module, batch_size: int = 256, path: str | None = None
) -> Tensor:
    """What enters the classifier, in eval mode: ``(N, features)`` float32 on the CPU.

    Args:
        model: a whole model; its mode, its classifier and its gradients are left as they were.
        images: ``(N, C, H, W)`` uint8 or floating in [0, 1]; gray ones are given three channels.
        view: makes the network's input of a batch of images, as ``EvalView`` does.
        batch_size: images at a time.
        path: of the classifier, or of the head in its place; by default the model's last linear layer.

    """
    device = next(model.parameters()).device
    mode = model.training
    with classifier_replaced(model, nn.Identity(), path):
        try:
            model.eval()
            parts = [
                model(to_rgb(view(batch.to(device)))).flatten(1).float().cpu()
                for batch in torch.split(images, batch_size)
            ]
        finally:
            model.train(mode)
    return torch.cat(parts)


def to_rgb(x: Tensor) -> Tensor:
    """``(B, 1 or 3, H, W)`` with three channels."""
    return x.expand(-1, 3, -1, -1)
