"""The policy against its transforms one by one, and its choices against their probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from graphaug.augment.transform import Needs
from graphaug.augment.transforms.mix import Mix
from graphaug.augment.transforms.noise import Noise
from graphaug.augment.transforms.policy import Policy
from graphaug.augment.transforms.steer import Add
from graphaug.augment.transforms.tokens import Tokens
from graphaug.errors import InvalidOption

ROWS = torch.randn(400, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("per", ["row", "batch"])
def test_every_row_has_the_result_of_the_transform_that_it_drew(per: str) -> None:
    torch.manual_seed(0)
    parts = [Noise(0.3), Mix("extrapolate"), Add(torch.arange(5.0))]
    policy = Policy(parts, p=[1, 2, 1], per=per)
    rows = ROWS.clone().requires_grad_()
    draws = policy.draw(rows)
    out = policy(rows, draws)
    noise, mixed, _ = draws.draws
    expected = []
    for i, which in enumerate(draws.choice.tolist()):
        row = rows[i]
        if which == 0:
            row = row + 0.3 * noise.noise[i]
        elif which == 1:
            row = row + 0.5 * (row - rows[mixed.partners[i]])
        else:
            row = row + torch.arange(5.0)
        expected.append(row)
    torch.testing.assert_close(out, torch.stack(expected), rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad((o * weight).sum(), rows)[0] for o in (out, torch.stack(expected)))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert (len(draws.choice.unique()) == 1) == (per == "batch")


def test_choices_have_the_probabilities() -> None:
    torch.manual_seed(0)
    policy = Policy([Noise(), Noise(), Noise()], p=[1, 0, 3])
    share = policy.draw(ROWS).choice.bincount(minlength=3) / 400
    for found, p in zip(share.tolist(), (0.25, 0.0, 0.75), strict=True):
        assert abs(found - p) <= 4.5 * math.sqrt(p * (1 - p) / 400)
    policy.set(p_0=0.0, p_1=1.0, p_2=0.0)
    assert (policy.draw(ROWS).choice == 1).all()
    every = torch.stack(
        [Policy([Noise(), Noise()], p=[1, 3], per="batch").draw(ROWS).choice[0] for _ in range(400)]
    )
    assert abs(every.double().mean() - 0.75) <= 4.5 * math.sqrt(0.75 * 0.25 / 400)


def test_numbers_are_those_of_the_policy_and_of_its_transforms() -> None:
    policy = Policy([Noise(0.3), Mix(alpha=1.0)])
    assert policy.numbers() == {"p_0": 1, "p_1": 1, "sigma_0": 0.3, "alpha_1": 1}
    policy.set(sigma_0=0.7, p_1=0.5)
    assert policy.numbers() == {"p_0": 1, "p_1": 0.5, "sigma_0": 0.7, "alpha_1": 1}
    for wrong in ({"sigma_1": 1.0}, {"sigma_0": -1.0}, {"p_0": -1.0}, {"p_0": 0.0, "p_1": 0.0}, {"p": 1.0}):
        with pytest.raises(InvalidOption):
            policy.set(alpha_1=3.0, **wrong)
    assert policy.numbers()["alpha_1"] == 1


def test_it_needs_what_its_transforms_need() -> None:
    assert Policy([Noise(), Add(torch.ones(5))]).needs == Needs()
    assert Policy([Noise(relative="site"), Mix()]).needs == Needs(
        partners=True, statistics=True, gradient=True
    )


@pytest.mark.parametrize(
    ("transforms", "p", "message"),
    [
        ([Noise()], None, "two transforms or more"),
        ([Noise(), torch.tanh], None, r"make graphaug\.Call\(it\)"),
        (Noise(), None, "a list of two transforms or more"),
        ([Noise(), Mix()], 0.5, "p=0.5: give a list of 2 probabilities"),
        ([Noise(), Mix()], [1.0], "1 probabilities for 2"),
        ([Noise(), Mix()], [0.0, 0.0], "above 0"),
        ([Noise(), Mix()], [1.0, -1.0], "p_1=-1"),
        ([Noise(), Tokens()], None, "number of tokens"),
    ],
)
def test_bad_policies_are_refused(transforms: Any, p: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Policy(transforms, p)
