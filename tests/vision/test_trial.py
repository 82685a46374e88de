"""What is trained on images is tried first: its size, what it returns in both modes; and the model stays as it was."""

import re

import pytest
import torch
from torch import nn

from graphaug.errors import ConfigError
from graphaug.vision.models import build_model, classifier_path, projection_head
from graphaug.vision.trial import check_model


class Net(nn.Module):
    """Returns what a function makes of class scores, features and its mode."""

    def __init__(self, returns=lambda scores, features, training: scores):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 16)
        self.returns = returns

    def forward(self, x):
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.returns(self.fc(features), features, self.training)


RETURNED = {
    "a dict": (
        lambda scores, features, training: {"logits": scores},
        "returns a dict of 'logits' for 4 images, and",
    ),
    "a tuple": (
        lambda scores, features, training: (scores, features),
        "a tuple of 2 entries for 4 images, and",
    ),
    "a tuple in training": (
        lambda scores, features, training: (scores, features) if training else scores,
        "a tuple of 2 entries for 4 images in training mode, and",
    ),
    "nothing": (lambda scores, features, training: None, "returns None for 4 images"),
    "a number": (lambda scores, features, training: scores.mean(), r"a tensor of shape () and type float32"),
    "a vector": (lambda scores, features, training: scores[:, 0], r"a tensor of shape (4,) and"),
    "too few rows": (lambda scores, features, training: scores[:2], r"a tensor of shape (2, 16) and"),
    "features": (lambda scores, features, training: features, r"a tensor of shape (4, 8) and"),
    "classes": (
        lambda scores, features, training: scores.round().long(),
        r"a tensor of shape (4, 16) and type int64",
    ),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_is_not_one_row_of_the_heads_for_each_image_is_refused(name):
    returns, said = RETURNED[name]
    with pytest.raises(
        ConfigError, match=rf"^mine returns .*{re.escape(said.removeprefix('returns '))}.*\(4, 16\)"
    ):
        check_model(Net(returns), 8, "mine", 16)


@pytest.mark.parametrize("shape", [(16,), (16, 1), (16, 1, 1)])
def test_what_stands_behind_a_row_is_free(shape):
    check_model(Net(lambda scores, features, training: scores.view(-1, *shape)), 8, "mine", 16)


def test_the_command_refuses_it_and_leaves_nothing_behind(graphaug, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(3, 10)\n\n"
        "    def forward(self, x):\n        return {'logits': self.fc(x.mean((2, 3)))}\n"
    )
    out = tmp_path / "run"
    code, said, err = graphaug("pretrain", "--model", f"{tmp_path / 'net.py'}:Net", "--out", out)
    assert (code, said) == (2, "")
    assert "net.py:Net returns a dict of 'logits' for 4 images" in err
    assert not out.exists()


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "alexnet"])
def test_a_model_that_cannot_take_the_size_is_named_with_it(graphaug, name, tmp_path):
    code, _, err = graphaug("pretrain", "--model", name, "--size", "8", "--out", tmp_path / "run")
    assert code == 2
    assert re.search(rf"{name} cannot take images of 8 × 8 pixels: .*--size", err)
    assert ("def net():" in err) == name.startswith("timm:")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [pytest.param(24, marks=pytest.mark.long), 32])
def test_the_file_that_is_proposed_for_a_model_of_timms_builds_it_for_the_size(size, tmp_path):
    model = headed(build_model("timm:vit_tiny_patch16_224"))
    with pytest.raises(ConfigError) as caught:
        check_model(model, size, "timm:vit_tiny_patch16_224", 16)
    *_, first, second = str(caught.value).splitlines()
    (tmp_path / "net.py").write_text(f"{first.strip()}\n{second.strip()}\n")
    built = build_model(f"{tmp_path / 'net.py'}:net")
    assert built.patch_embed.num_patches >= 64
    check_model(headed(built), size, "net.py:net", 16)


def headed(model):
    path = classifier_path(model)
    model.set_submodule(path, projection_head(model.get_submodule(path), 16))
    return model


def test_trying_a_model_leaves_modes_statistics_and_the_random_state():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AvgPool2d(6), nn.Flatten())
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check_model(model, 8, "mine", 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model][:3] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ConfigError, match=r"mine cannot take images of 2 × 2 pixels: .*Kernel size"):
        check_model(model, 2, "mine", 4)
    assert [part.training for part in model][:3] == [True, False, True]
