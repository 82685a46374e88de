"""A state that is not whole, or not of this run, is refused before anything is done; a whole one goes on exactly."""

import copy
import hashlib
import re
import shutil
from dataclasses import replace

import graph_runs
import pytest
import resumed
import torch
from graph_runs import GraphTask
from torch import nn

from graphaug.contrastive.devices import make_fabric
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.optim import build_optimizer
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.life import run_task
from graphaug.errors import CheckpointError
from graphaug.vision.pretrain import pretrain

pytestmark = pytest.mark.few(8)


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.idle = nn.Linear(3, 1), nn.Linear(3, 1)  # no gradient ever reaches the second
        self.more = False

    def forward(self, x):
        loss = self.line(x).square().mean()
        return {"loss": loss, "size": x.mean(), **({"more": loss} if self.more else {})}


class Rows:
    steps = 4

    def start_epoch(self):
        pass

    def batches(self, step):
        yield (torch.full((4, 3), 1.0 + step),)

    def state_dict(self, new_epoch):
        return {}

    def load_state_dict(self, state):
        pass


class Stop(Exception):
    pass


def engine(optimizer="sgd", **options):
    torch.manual_seed(0)
    objective = Regression()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options}
    made = build_optimizer(optimizer, objective, **settings)
    fabric = make_fabric(1, "cpu", "32-true")
    return Engine(fabric, objective, Rows(), made, lambda epoch: 0.01 / (1 + epoch), epochs=2)


def stopped(optimizer="sgd", at=6):
    """The state after so many steps of four an epoch: by default in the middle of the second."""
    trained, states = engine(optimizer), []

    def after_step(step):
        if step == at:
            states.append(copy.deepcopy(trained.state_dict()))
            raise Stop

    with pytest.raises(Stop):
        trained.fit(after_step)
    return states[0]


@pytest.mark.parametrize("at", [3, 4, 6, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_a_whole_state_goes_on_as_if_nothing_had_been(optimizer, at):
    unbroken, other = engine(optimizer), engine(optimizer)
    unbroken.fit()
    other.load_state_dict(stopped(optimizer, at), "the file", at)
    other.fit()
    for name, value in unbroken.objective.state_dict().items():
        assert torch.equal(value, other.objective.state_dict()[name])
    timeless = [
        [
            {k: v for k, v in line.items() if k in ("epoch", "loss", "size", "lr")}
            for line in e.position.metrics
        ]
        for e in (unbroken, other)
    ]
    assert timeless[0] == timeless[1]


def put(*path_and_value):
    """Sets what is at a path in a state."""
    *path, last, value = path_and_value

    def change(state):
        for key in path:
            state = state[key]
        state[last] = value

    return change


def drop(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def moments(state):
    for kept in state["optimizer"]["state"].values():
        kept.clear()


def none_said(state):
    state["optimizer"]["state"] = {}
    state["contents"]["moments"] = []


def kinds(*path):
    return {
        f"{'/'.join(map(str, path))} = {value!r}": (put(*path, value), "and no")
        for value in (None, "6", [6], {"a": 6}, 6.0, True, -1)
    }


INCOMPLETE = {
    "no loss": (drop("sums", "loss"), "it sums size, and loss, size when it was made"),
    "no sums": (put("sums", {}), "it sums nothing"),
    "sums of another shape": (put("sums", "loss", torch.zeros(3)), "'loss' is not one number for each process"),
    "a sum that is a number": (put("sums", "loss", 3.0), "'loss' is not one number for each process"),
    "no moments": (put("optimizer", "state", {}), "moments of 0 parameters, and had them of 2"),
    "no moments, and none said": (none_said, "no moments after 6 steps"),
    "empty moments": (moments, "keeps momentum_buffer of a parameter, and nothing of line.weight"),
    "a moment missing": (drop("optimizer", "state", 0), "moments of 1 parameter, and had them of 2"),
    "a moment's state None": (put("optimizer", "state", 0, None), "state of line.weight is None"),
    "a moment None": (put("optimizer", "state", 0, "momentum_buffer", None), "is None for line.weight"),
    "a moment of another shape": (
        put("optimizer", "state", 1, "momentum_buffer", torch.zeros(())),
        r"has the shape \(\) for line.bias, not \(1,\)",
    ),
    "another momentum": (put("optimizer", "param_groups", 0, "momentum", 0.0), "momentum is 0.0, and 0.9"),
    "another decay": (put("optimizer", "param_groups", 0, "weight_decay", 7.0), "weight_decay is 7.0, and 0.01"),
    "a setting None": (put("optimizer", "param_groups", 0, "nesterov", None), "nesterov is None, and False"),
    "a setting missing": (drop("optimizer", "param_groups", 0, "momentum"), "it has no 'momentum'"),
    "another rate": (put("optimizer", "param_groups", 0, "lr", 7.0), "lr is 7.0, and 0.0044"),
    "rate of text": (put("optimizer", "param_groups", 0, "lr", "7"), "lr is '7', and 0.0044"),
    "other parameters": (put("optimizer", "param_groups", 0, "params", [0]), "has other parameters"),
    "no groups": (put("optimizer", "param_groups", []), "has 0 groups, and 1"),
    "groups of text": (put("optimizer", "param_groups", "x"), "no list of settings"),
    "another step": (put("step", 7), "its step is 7, and its name says 6"),
    "another line": (put("lined", 3), "written its metrics down after 3, and they end after 4"),
    "a later line": (put("lined", 8), "written its metrics down after 8"),
    "no lines": (put("metrics", []), "after 4, and they end after 0"),
    "metrics of text": (put("metrics", "x"), "no list of lines"),
    "metrics of names": (put("metrics", {}), "no list of lines"),
    "metrics of numbers": (put("metrics", [1]), "no list of lines"),
    "a line without a loss": (drop("metrics", 0, "loss"), "line 1 of its metrics has no number for loss"),
    "an epoch of text": (put("metrics", 0, "epoch", "1"), "line 1 of its metrics has no number for epoch"),
    "more processes": (put("processes", 2), r"was made by 2 process\(es\), and there are 1"),
    "no contents": (drop("contents"), "it has no 'contents'"),
    "contents of text": (put("contents", "x"), "does not fit this run"),
} | {
    name: change
    for key in ("step", "lined", "processes")
    for name, change in kinds(key).items()
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_state_is_refused_by_the_name_of_its_file(name):
    change, message = INCOMPLETE[name]
    state = stopped()
    change(state)
    with pytest.raises(CheckpointError, match=f"^the file .*{message}"):
        engine().load_state_dict(state, "the file", 6)


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        ("sgd", {"momentum": 0.5}, "momentum is 0.9, and 0.5 in this run"),
        ("lars", {}, "2 groups|1 group"),
        ("adamw", {}, "1 group"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(optimizer, options, message):
    with pytest.raises(CheckpointError, match=f"^the file does not fit this run: .*({message})"):
        engine(optimizer, **options).load_state_dict(stopped(), "the file", 6)


def test_adamw_without_one_of_its_moments_is_refused():
    state = stopped("adamw")
    del state["optimizer"]["state"][0]["exp_avg_sq"]
    with pytest.raises(
        CheckpointError, match=r"keeps .*exp_avg_sq of a parameter, and step, exp_avg of line\.weight"
    ):
        engine("adamw").load_state_dict(state, "the file", 6)


def test_a_run_that_measures_something_else_does_not_go_on():
    other = engine()
    other.load_state_dict(stopped(), "the file", 6)
    other.objective.more = True
    with pytest.raises(
        CheckpointError, match=r"^the file .* it sums loss, size, and this run loss, size, more"
    ):
        other.fit()


def rewritten(out, change):
    for path in Checkpoints(out / "checkpoints").complete():
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


CONFIG = replace(
    resumed.CONFIG, epochs=2, at=(), stop_grad=False, rate_end=None, snapshot_every=0, watch_every=0
)


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    """The directory of a run that ended in its first epoch."""
    out = tmp_path_factory.mktemp("halted") / "run"
    save = Checkpoints.save

    def save_and_stop(self, step, state):
        save(self, step, state)
        if step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            pretrain(CONFIG, out, data=resumed.images())
    return out


@pytest.mark.parametrize(
    "change",
    [
        put("sums", {}), put("optimizer", "state", {}), put("step", 1), put("lined", None), put("metrics", 3),
        put("optimizer", "param_groups", 0, "weight_decay", 7.0), put("processes", "2"), put("classifier", None),
    ],
    ids=["sums", "moments", "step", "lined", "metrics", "settings", "processes", "classifier"],
)  # fmt: skip
def test_a_run_is_left_as_it_was_where_its_checkpoint_is_refused(change, halted, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(halted, out)
    rewritten(out, change)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    file = Checkpoints(out / "checkpoints").complete()[-1]
    with pytest.raises(CheckpointError, match=f"^checkpoint '{re.escape(str(file))}' does not fit this run"):
        pretrain(CONFIG, out, data=resumed.images(), resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


class Stepped(GraphTask):
    unit = "step"


def test_a_line_without_what_lines_are_named_by_is_refused_before_the_end_of_the_run(tmp_path):
    def stop(line):
        if line["epoch"] == 2:
            raise Stop

    config = replace(graph_runs.CONFIG, at=(), stop_grad=False, checkpoint_every=1)
    with pytest.raises(Stop):
        run_task(Stepped(config), tmp_path, on_line=stop)
    rewritten(tmp_path, drop("metrics", 0, "step"))
    with pytest.raises(CheckpointError, match=r"^checkpoint .*\.pt' does not fit this run: it has no 'step'"):
        run_task(Stepped(config), tmp_path, resume=True)


def test_an_empty_checksum_is_named(halted, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(halted, out)
    for path in Checkpoints(out / "checkpoints").complete():
        path.with_name(path.name + ".sha256").write_text("")
    with pytest.raises(CheckpointError, match=r"step-0*2\.pt' has an empty step-0*2\.pt\.sha256"):
        pretrain(CONFIG, out, data=resumed.images(), resume=True)
