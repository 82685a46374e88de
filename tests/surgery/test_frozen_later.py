"""What a freeze says and does where its region was changed since. Oracle: the flags of the parts themselves."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import graphaug as ga
from graphaug.errors import AssumptionViolated, VerificationError

pytestmark = pytest.mark.few(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blk = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.scale = nn.Parameter(torch.ones(6))
        self.mid, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.blk(x) * self.scale)))


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def frozen() -> tuple[Net, ga.AugmentedModule]:
    model = Net()
    return model, ga.rewrite(model, "mid", rate=0.5, freeze="before", example_inputs=X).train()


def exchange_layer(model: Net) -> None:
    model.blk[0] = nn.Linear(6, 6)


def exchange_parent(model: Net) -> None:
    model.blk = nn.Sequential(nn.Linear(6, 6))


def exchange_parameter(model: Net) -> None:
    model.scale = nn.Parameter(torch.full((6,), 2.0))


def normed_as_before(model: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.blk[0])


def thawed(model: Net) -> None:
    model.mid.bias.requires_grad_(True)


TRAINED: dict[str, tuple[Callable[[Net], None], list[str]]] = {
    "another layer": (exchange_layer, ["blk.0.weight", "blk.0.bias"]),
    "another parent": (exchange_parent, ["blk.0.weight", "blk.0.bias"]),
    "another parameter": (exchange_parameter, ["scale"]),
    "weight_norm of old": (normed_as_before, ["blk.0.weight_g", "blk.0.weight_v"]),
    "thawed by hand": (thawed, ["mid.bias"]),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_is_trained_in_a_frozen_region_is_said(case: str) -> None:
    change, names = TRAINED[case]
    model, aug = frozen()
    change(model)
    with pytest.warns(UserWarning, match=f"{names[0]}.*freeze='before'"):
        aug.train()(X).sum().backward()
    aug(X)  # said once
    trained = {n: p.grad is not None for n, p in model.named_parameters() if not n.startswith("head")}
    assert [n for n, t in trained.items() if t] == sorted(names, key=list(trained).index)
    assert f"now trained there: {', '.join(names)}" in str(aug.plan).replace(" …", "")
    assert ga.Plan.from_json(aug.plan.to_json()) == aug.plan
    with pytest.raises(VerificationError, match=f"trainable: {names[0]}"):
        ga.verify(aug, X)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    assert "now trained" not in str(aug.plan)
    ga.verify(aug, X)


def normed(model: Net) -> None:
    parametrizations.weight_norm(model.blk[0])


def pruned(model: Net) -> None:
    prune.random_unstructured(model.blk[0], "weight", 0.5)


def without_bias(model: Net) -> None:
    model.blk[0].bias = None


def identity(model: Net) -> None:
    model.blk[0] = nn.Identity()


def loaded(model: Net) -> None:
    model.load_state_dict(Net().state_dict(), assign=True)


def parent_without_parameters(model: Net) -> None:
    model.blk = nn.ReLU()


QUIET: dict[str, tuple[Callable[[Net], None], int]] = {
    "nothing": (lambda _: None, 7),
    "weight_norm": (normed, 7),
    "pruned": (pruned, 7),
    "no bias": (without_bias, 6),
    "an identity": (identity, 5),
    "loaded": (loaded, 7),
    "another parent": (parent_without_parameters, 3),
}


@pytest.mark.parametrize("copied", [lambda a: a, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
@pytest.mark.parametrize("case", QUIET)
def test_a_freeze_whose_parts_were_exchanged_is_verified_and_taken_back(
    case: str, copied: Callable[[ga.AugmentedModule], ga.AugmentedModule]
) -> None:
    aug = copied(frozen()[1])
    model = aug.original
    QUIET[case][0](model)
    aug.train()(X).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
    assert f"{QUIET[case][1]} frozen parameters receive no gradient" in ga.verify(aug, X).claims
    assert ga.strip(aug) is model
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("change", [exchange_layer, exchange_parent, normed_as_before, normed, identity])
def test_strip_thaws_what_is_still_there(change: Callable[[Net], None]) -> None:
    model, aug = frozen()
    model.head.bias.requires_grad_(False)  # the user's own
    change(model)
    assert ga.strip(aug) is model
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"head.bias"}


def test_train_puts_norms_into_eval_mode_and_nothing_else() -> None:
    model, aug = frozen()
    model.blk[1] = nn.Dropout(0.5)
    aug.train()
    assert model.blk[1].training
    model.blk[1] = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6).requires_grad_(False))
    aug.train()
    assert [m.training for m in model.blk[1].modules()] == [True, True, False]
    aug.keep_frozen_statistics(False)
    assert all(m.training for m in model.modules())


def test_an_opened_parent_that_was_exchanged_is_refused_in_our_words() -> None:
    model = Net()
    aug = ga.rewrite(model, "blk.0", rate=0.5, freeze="before", example_inputs=X)
    model.blk = nn.Linear(6, 6)
    with pytest.raises(AssumptionViolated):
        aug.train()(X)
    ga.strip(aug)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.long
def test_compiled_it_is_said_too() -> None:
    model, aug = frozen()
    exchange_layer(model)
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="blk.0.weight"):
        compiled(X)


def test_statistics_that_somebody_sets_to_follow_are_named_once() -> None:
    model, x = (
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2)),
        torch.randn(6, 8),
    )
    aug = ga.rewrite(model, "2", freeze="before", example_inputs=x).train()
    model.train()  # the plain model, whose modules the rewritten one shares
    with pytest.warns(UserWarning, match="running statistics of 1 follow the batches in the frozen region"):
        aug(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aug(x)
        aug.train()
        before = model[1].running_mean.clone()
        aug(x)
        assert torch.equal(model[1].running_mean, before)
        aug.keep_frozen_statistics(False)
        aug(x)
    assert not torch.equal(model[1].running_mean, before)
