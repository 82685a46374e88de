"""Weights to begin with: a file that holds none is refused by its name, in words of ours."""

import re

import pytest
import torch
from safetensors.torch import save_file

from graphaug.errors import CheckpointError
from graphaug.vision.models import build_model
from graphaug.vision.weights import load_weights


@pytest.fixture(scope="module")
def model():
    return build_model("resnet18-cifar:4")


def saved(value):
    return lambda path: torch.save(value, path)


WEIGHT = {"network.conv1.weight": torch.zeros(2)}

NO_WEIGHTS = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as weights: it is empty"),
    "text": (lambda path: path.write_text("example\n"), "it is no file of torch's with tensors and plain values alone"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256))), "it is no file of torch's"),
    "code": (saved({"a": torch.nn.Linear(1, 1)}), "it is no file of torch's with tensors and plain values alone"),
    "a number": (saved(3), "holds no state_dict: it is an int, and names with tensors are expected"),
    "a list": (saved([torch.zeros(1)]), "holds no state_dict: it is a list"),
    "numbers for names": (saved({1: torch.zeros(1)}), "holds no state_dict: .* there is a Tensor at 1"),
    "a value": (saved({"conv1.weight": 3}), "holds no state_dict: .* there is an int at 'conv1.weight'"),
    "objective 3": (saved({"objective": 3, "classifier": 4}), "no state_dict in its 'objective': it is an int"),
    "classifier None": (saved({"objective": {}, "classifier": None}), "no state_dict in its 'classifier': it is None"),
    "number in objective": (
        saved({"objective": {"network.conv1.weight": 3}, "classifier": {}}), "in its 'objective': .* there is an int at"
    ),
    "names in objective": (saved({"objective": {1: torch.zeros(1)}, "classifier": {}}), "there is a Tensor at 1"),
    "names in classifier": (saved({"objective": WEIGHT, "classifier": {1: torch.zeros(1)}}), "there is a Tensor at 1"),
    "half a model": (saved({"objective": WEIGHT, "classifier": {}}), "is of another model"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_holds_no_weights_is_refused_by_name(name, suffix, model, tmp_path):
    make, message = NO_WEIGHTS[name]
    path = tmp_path / f"w.{suffix}"
    make(path)
    if suffix == "safetensors" and name != "empty":
        message = "cannot be read as weights: it is no file of safetensors'"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"^'{re.escape(str(path))}' .*{message}") as caught:
        load_weights(model, path)
    assert str(caught.value).isprintable()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["state", "checkpoint", "safetensors"])
def test_weights_of_each_kind_are_those_that_were_saved(kind, tmp_path):
    torch.manual_seed(1)
    given = build_model("resnet18-cifar:4").state_dict()
    torch.manual_seed(2)
    model = build_model("resnet18-cifar:4")
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(given, path)
    elif kind == "state":
        torch.save(given, path)
    else:
        objective = {
            f"network.{name}": tensor for name, tensor in given.items() if not name.startswith("fc.")
        }
        classifier = {
            name.removeprefix("fc."): tensor for name, tensor in given.items() if name.startswith("fc.")
        }
        torch.save({"objective": objective, "classifier": classifier}, path)
    load_weights(model, path)
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())
