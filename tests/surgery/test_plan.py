"""Plans as files. Oracle: the rewrite that the plan is of, step by step with the same draws."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import ConvNet, Mlp
from torch import Tensor, nn

import graphaug as ga
from graphaug.augment.transform import Domain
from graphaug.errors import InvalidOption, SiteNotFound

pytestmark = pytest.mark.few(1)

REQUESTS: dict[str, dict[str, Any]] = {
    "dropout": {"at": "layer1", "rate": 0.3, "granularity": "channel", "stop_grad": True},
    "several": {
        "at": {"layer1": ga.Noise(0.1, relative="site", subset=0.25), "layer2": 0.7, "stem": ga.PCA(2)}
    },
    "policy": {"at": "layer1", "transform": ga.Policy([ga.Noise(0.1), ga.Mix(alpha=1.0)], p=[1, 3])},
    "tensor": {"at": "layer1", "transform": ga.Add(torch.linspace(0, 1, 6), scale=2.0), "freeze": "before"},
    "mix": {
        "at": "layer1@0",
        "transform": ga.Mix("interpolate", partner="nearest", neighbours=2),
        "subset": 0.75,
    },
    "options": {
        "at": "layer1.1.add",
        "transform": ga.Statistics("dsu"),
        "allow_bypass": True,
        "backward": "dense",
    },
}


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.long
def test_a_plan_from_a_file_does_the_same_to_another_model(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(), torch.randn(6, 3, 8, 8)
    aug = ga.rewrite(model, **options)
    text = aug.plan.to_json()
    plan = ga.Plan.from_json(text)
    assert str(plan) == str(aug.plan)
    assert plan.to_json() == text
    other = ConvNet()
    other.load_state_dict(model.state_dict())
    again = ga.rewrite(other, plan)
    assert str(again.plan) == str(aug.plan)
    for seed in range(2):
        torch.manual_seed(seed)
        expected = aug(x)
        torch.manual_seed(seed)
        assert torch.equal(again(x), expected)
    assert str(ga.rewrite(ConvNet(), plan, dry_run=True)) == str(plan)


@pytest.mark.long
def test_a_plan_has_the_numbers_that_its_transform_was_given_with() -> None:
    noise = ga.Noise()
    noise.set(sigma=0.7)
    plan = ga.rewrite(ConvNet(), "layer1", transform=noise, dry_run=True)
    again = ga.rewrite(ConvNet(), ga.Plan.from_json(plan.to_json()))
    assert again.deep_augment.numbers()["sigma"] == 0.7


def test_its_text_has_the_numbers_that_were_set_since_and_nothing_else_changes() -> None:
    aug = ga.rewrite(ConvNet(), {"layer1": 0.5, "layer2": ga.Noise(0.1), "stem": 0.3})
    plan = aug.plan
    text = str(plan)
    aug.set_rate({"layer1": 0.1})
    aug.set("layer2", sigma=0.3, subset=0.25)
    lines = dict(zip(text.splitlines(), str(aug.plan).splitlines(), strict=True))
    since = [now.removeprefix(before) for before, now in lines.items() if now != before]
    assert since == ["; now rate 0.1", "; now sigma 0.3, subset 0.25"]
    assert str(copy.deepcopy(aug).plan) == str(aug.plan)
    assert aug.plan == plan
    assert aug.plan.to_json() == plan.to_json()
    assert str(plan) == text
    aug.set_rate({"layer1": 0.5})
    aug.set("layer2", sigma=0.1, subset=0.5)
    assert str(aug.plan) == text


class Skips(nn.Module):
    """A U-Net's usual question: whether what came up has the size of what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.down(x))
        if up.shape != x.shape:
            up = nn.functional.interpolate(up, x.shape[2:])
        if up.shape[1] != x.shape[1] or up.shape[3] != x.shape[2]:
            up = up.mT
        return up


def test_two_shapes_that_are_compared_size_by_size_are_one_line_of_its_text() -> None:
    plan = ga.rewrite(Skips(), at="down", example_inputs=torch.randn(2, 3, 8, 8)).plan
    lines = [line.removeprefix("  assumes  ").strip() for line in str(plan).splitlines()]
    assert "up.shape[:4] == x.shape[:4]" in lines
    assert not any("up.shape[0]" in line for line in lines)
    assert "up.shape[3] == x.shape[2]" in lines  # of other dimensions, and a question of its own
    assert {f"up.shape[{i}] == x.shape[{i}]" for i in range(4)} <= set(plan.assumptions)


def test_a_policy_is_written_with_the_probabilities_that_were_learned() -> None:
    policy = ga.Policy([ga.Noise(0.1), ga.Mix()])
    policy.set(p_0=0.25, sigma_0=0.7)
    plan = ga.rewrite(ConvNet(), "layer1", transform=policy, dry_run=True)
    read = ga.Plan.from_json(plan.to_json()).sites[0].request.transform
    assert read is not None
    assert read.numbers() == policy.numbers()


class Shift(ga.Transform):
    """A user's own."""

    def __init__(self, width: float = 1.0, *, twice: bool = False, **site: Any) -> None:
        super().__init__(**site)
        self.add_number("width", width, Domain())
        self.twice = twice

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return rows + self.width.to(rows.dtype) * (1 + self.twice)


def test_a_transform_of_ones_own_is_named_when_the_file_is_read() -> None:
    plan = ga.rewrite(ConvNet(), "layer1", transform=Shift(0.5, twice=True, subset=0.25), dry_run=True)
    text = plan.to_json()
    assert json.loads(text)["sites"][0]["request"]["transform"] == {
        "transform": "Shift",
        "options": {"width": 0.5, "twice": True},
    }
    with pytest.raises(InvalidOption, match=r"transforms=\[YourTransform\]"):
        ga.Plan.from_json(text)
    read = ga.Plan.from_json(text, transforms=[Shift])
    request = read.sites[0].request
    assert request.subset == 0.25
    assert isinstance(request.transform, Shift)
    assert request.transform.twice


def test_what_a_file_cannot_hold_is_refused() -> None:
    plan = ga.rewrite(ConvNet(), "layer1", transform=nn.Tanh(), dry_run=True)
    with pytest.raises(InvalidOption, match="its fn is a Tanh"):
        plan.to_json()


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"graphaug": 2}', '{"graphaug": 1, "sites": [{}]}', "null"]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="plan"):
        ga.Plan.from_json(text)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all that lies in a structure."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def test_a_damaged_plan_is_refused_or_is_one() -> None:
    """Whatever lies in the place of whatever: no error but ours, of reading, printing or rewriting by it."""
    plan = ga.rewrite(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), "0", freeze="before", dry_run=True)
    whole = json.loads(plan.to_json())
    refused = 0
    for path in list(_places(whole)):
        for value in (None, -7, 1.5, "zzz", [], {}, True, [1], {"a": 1}):
            damaged = holder = copy.deepcopy(whole)
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            try:
                str(ga.Plan.from_json(json.dumps(damaged)))
            except InvalidOption:
                refused += 1
    assert refused > 200


@pytest.mark.long
def test_a_plan_of_another_architecture_gives_the_usual_error() -> None:
    plan = ga.rewrite(ConvNet(), "layer1", dry_run=True)
    with pytest.raises(SiteNotFound, match="layer1"):
        ga.rewrite(Mlp(), plan)


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.3}, {"transform": ga.Noise()}, {"side": "before"}, {"backward": "dense"}, {"expect": 1}],
    ids=str,
)
def test_a_plan_comes_without_further_options(options: dict[str, Any]) -> None:
    plan = ga.rewrite(ConvNet(), "layer1", dry_run=True)
    with pytest.raises(InvalidOption, match="said by the plan already"):
        ga.rewrite(ConvNet(), plan, **options)


def test_a_plan_that_asks_for_a_sparse_backward_takes_nothing_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial finds on the other model is an error, as where it was asked for by hand."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 6)
    plan = ga.rewrite(model, "1", stop_grad=True, backward="sparse", example_inputs=x, dry_run=True)
    monkeypatch.setattr(
        sys.modules["graphaug.operation"], "check_split", lambda *_: "a trial finds something"
    )
    with pytest.raises(
        ga.errors.SparseBackwardError, match=r"'sparse' is not possible .* a trial finds something"
    ):
        ga.rewrite(model, plan, example_inputs=x)


def test_what_a_plan_cannot_repeat_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"this plan is of graphaug\.tap"):
        ga.rewrite(ConvNet(), ga.tap(ConvNet(), "layer1").plan)
    plain = json.loads(ga.rewrite(ConvNet(), "layer1", dry_run=True).to_json())
    for change, message in (
        ({"sites": []}, "has no sites"),
        ({"asked": {**plain["asked"], "views": 0}}, "whole number of views"),
        ({"asked": {**plain["asked"], "backward": "spares"}}, "Did you mean 'sparse'"),
    ):
        plan = ga.Plan.from_json(json.dumps({**plain, **change}))
        with pytest.raises(InvalidOption, match=message):
            ga.rewrite(ConvNet(), plan)


class Prints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x):
        print("shape", x.shape, x.dtype)
        h = self.down(x)
        print(f"behind: {h.shape}")
        return self.up(h)


def test_what_a_forward_prints_is_no_assumption_and_stands_in_the_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    aug = ga.rewrite(Prints(), at="down", subset=0.0, example_inputs=torch.randn(6, 4))
    assert aug.plan.assumptions == ()
    (note,) = aug.plan.notes
    assert re.match(
        r"what the forward prints or logs \(test_plan.py line \d+, test_plan.py line \d+\) the graph does not",
        note,
    )
    capsys.readouterr()
    aug(torch.randn(9, 4))
    assert capsys.readouterr().out == ""
    aug.eval()(torch.randn(9, 4))
    assert "shape torch.Size([9, 4]) torch.float32\nbehind: torch.Size([9, 2])" in capsys.readouterr().out
