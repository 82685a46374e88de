"""A state of another version is refused in words, whatever in it is missing, of another shape or of another type."""

import pytest
import torch
from torch import nn

from graphaug.contrastive.devices import make_fabric
from graphaug.contrastive.engine import Engine
from graphaug.errors import CheckpointError


class Regression(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.line = nn.Linear(width, 1)

    def forward(self, x):
        return {"loss": self.line(x[:, : self.line.in_features]).square().mean()}


class Rows:
    steps = 2

    def start_epoch(self):
        pass

    def batches(self, step):
        yield (torch.ones(4, 3),)

    def state_dict(self, new_epoch):
        return {"order": torch.arange(3)}

    def load_state_dict(self, state):
        self.order = state["order"] + 0


def engine(width=2):
    objective = Regression(width)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    return Engine(make_fabric(1, "cpu", "32-true"), objective, Rows(), optimizer, lambda epoch: 0.1, epochs=2)


@pytest.fixture
def state():
    torch.manual_seed(0)
    trained = engine()
    trained.fit()
    return trained.state_dict()


def test_a_state_that_fits_goes_on(state):
    other = engine()
    other.load_state_dict(state)
    assert torch.equal(other.objective.line.weight, state["objective"]["line.weight"])
    assert other.position.step == 4


@pytest.mark.parametrize(
    "key", ["step", "lined", "sums", "metrics", "objective", "optimizer", "feed", "generators", "processes"]
)
def test_a_missing_key_is_named(state, key):
    del state[key]
    with pytest.raises(CheckpointError, match=f"the file does not fit this run: it has no '{key}'"):
        engine().load_state_dict(state, "the file")


def test_another_shape_is_named_with_torchs_own_words(state):
    with pytest.raises(
        CheckpointError, match=r"this checkpoint does not fit this run: size mismatch for line\.weight"
    ):
        engine(3).load_state_dict(state)


def test_a_moment_of_another_shape_is_not_broadcast(state):
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1, 1)
    with pytest.raises(CheckpointError, match=r"momentum_buffer of the optimizer has the shape \(1, 1\)"):
        engine().load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", {}),
        ("objective", None),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("feed", {}),
        ("feed", "text"),
        ("generators", {"cpu": torch.zeros(1, 8)}),
        ("generators", {}),
        ("sums", {"loss": 3.0}),
        ("metrics", 7),
    ],
)
def test_a_value_of_another_kind_is_one_error_of_ours(state, key, value):
    state[key] = value
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*another version"):
        engine().load_state_dict(state)
