"""Encoders: what torchvision builds, with the classifier exchanged and put back."""

import pytest
import torch
import torchvision
from torch import nn

from graphaug.errors import ConfigError, UnsupportedModel
from graphaug.vision.models import (
    build_model,
    classifier_path,
    classifier_replaced,
    feature_width,
    features,
    projection_head,
)
from graphaug.vision.views.pipeline import EvalView

# One small member of each torchvision family, with the place of its classifier and an image size it accepts.
FAMILIES = [
    ("alexnet", "classifier.6", 64),
    ("densenet121", "classifier", 32),
    ("efficientnet_b0", "classifier.1", 32),
    ("googlenet", "fc", 64),
    ("mnasnet0_5", "classifier.1", 32),
    ("mobilenet_v2", "classifier.1", 32),
    ("mobilenet_v3_small", "classifier.3", 32),
    ("regnet_y_400mf", "fc", 32),
    ("resnet18", "fc", 32),
    ("shufflenet_v2_x0_5", "fc", 32),
    ("squeezenet1_1", "classifier.1", 64),
    ("swin_t", "head", 32),
    ("resnet18-cifar", "fc", 8),
    ("resnet18-cifar:16", "fc", 8),
]


@pytest.mark.parametrize(("name", "path", "size"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_features_are_what_enters_the_classifier(name, path, size):
    model = build_model(name)
    assert classifier_path(model) == path
    entered = []
    layer = model.get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        scores = model(x)
    hook.remove()
    assert scores.shape == (2, 1000)
    got = features(model, x, EvalView(size))
    assert got.shape == (2, feature_width(model))
    if isinstance(layer, nn.Linear):
        torch.testing.assert_close(got, entered[0], rtol=1e-5, atol=1e-5)
    model.train()
    with torch.no_grad(), classifier_replaced(model, projection_head(layer, 12)):
        assert model(x).shape == (2, 12)
    assert model.get_submodule(path) is layer


def test_torchvision_models_are_plain():
    ours, plain = build_model("resnet18").state_dict(), torchvision.models.resnet18().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in plain.items()}


def test_cifar_resnet_keeps_its_resolution_in_the_stem():
    model = build_model("resnet18-cifar")
    shapes = []
    model.layer1.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 64, 32, 32)]
    # 11.17 million parameters below the classifier, the number published for this variant.
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("fc")) == 11_168_832


def test_the_width_scales_every_stage():
    model = build_model("resnet18-cifar:8")
    assert [getattr(model, f"layer{i}")[1].conv2.out_channels for i in (1, 2, 3, 4)] == [8, 16, 32, 64]
    assert isinstance(model, torchvision.models.ResNet)
    assert len(model.layer1[0].state_dict()) == len(torchvision.models.resnet18().layer1[0].state_dict())


def test_features_leave_the_model_as_it_was():
    model = build_model("resnet18-cifar:8").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    first = features(model, x, EvalView(8), batch_size=2)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(features(model, x, EvalView(8)), first, rtol=1e-4, atol=1e-5)
    assert not first.requires_grad


def test_the_classifier_comes_back_after_an_error():
    model = build_model("resnet18-cifar:8")
    own = model.fc
    with pytest.raises(RuntimeError, match="stop"), classifier_replaced(model, nn.Identity()):
        raise RuntimeError("stop")
    assert model.fc is own


def test_timm_models():
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t")
    assert classifier_path(model) == "fc"
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet10x'. Did you mean 'resnet10t'"):
        build_model("timm:resnet10x")


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("resnet18_cifar", "resnet18-cifar")],
)
def test_unknown_models(name, near):
    with pytest.raises(ConfigError, match=f"no model is called '{name}'. Did you mean .*'{near}"):
        build_model(name)


@pytest.mark.parametrize("width", ["0", "x", "", "-8", "16.0"])
def test_a_width_that_is_none_is_said_to_be_wrong(width):
    with pytest.raises(ConfigError, match=f"'resnet18-cifar:{width}': the width must be .*, not '{width}'"):
        build_model(f"resnet18-cifar:{width}")


def test_a_model_without_a_classifier():
    with pytest.raises(UnsupportedModel, match="Sequential has neither a linear layer"):
        classifier_path(nn.Sequential(nn.ReLU()))


def test_models_of_features_only_get_a_classifier():
    pytest.importorskip("timm")
    model = build_model("timm:vit_small_patch14_dinov2")  # num_classes=0
    assert classifier_path(model) == "head"
    assert model.get_submodule("head").out_features == 1000


def test_models_with_two_heads_are_refused_by_name():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="deit_tiny_distilled_patch16_224 does not end in one linear layer"):
        build_model("timm:deit_tiny_distilled_patch16_224")
