"""The mode in which a model comes is the mode in which it goes, and the plan says where that means nothing happens."""

from __future__ import annotations

import torch
from torch import nn

import graphaug as ga


def test_a_model_in_eval_mode_stays_so_and_the_plan_says_that_nothing_is_augmented() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4)
    aug = ga.rewrite(model.eval(), "1", rate=1.0, subset=1.0, example_inputs=x)
    assert not aug.training
    assert torch.equal(aug(x), model(x))
    assert [note for note in aug.plan.notes if "eval mode" in note]
    assert not torch.equal(aug.train()(x), model(x))
    trained = ga.rewrite(model.train(), "1", example_inputs=x)
    assert trained.training
    assert not [note for note in trained.plan.notes if "eval mode" in note]
