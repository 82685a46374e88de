"""What a forward changes of its modules: told from a copy that only iterates in another order."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.state import ModelState, unchanged
from graphaug.errors import CaptureError


class Named(nn.Module):
    """Keeps a set, as transformers' models do, that its forward reads and does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kept = {0}
        self.kept.update((9, 8))
        self.kept.discard(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h) if 8 in self.kept else h


def test_a_set_is_the_same_in_any_order() -> None:
    model, x = Named(), torch.randn(4, 8)
    assert list(model.kept) != list(set(model.kept))  # else this shows nothing
    assert list(ModelState(model).changes()) == []
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))


def test_another_entry_is_a_change() -> None:
    model = Named()
    state = ModelState(model)
    model.kept.add(5)
    assert list(state.changes()) == ["kept"]
    state.restore()
    assert model.kept == {8, 9}


def test_statistics_that_a_kernel_writes_without_counting_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = {name: b.clone() for name, b in model.named_buffers()}
    with unchanged(model):
        model(torch.randn(4, 8))
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


class Keeps(nn.Module):
    """Has an attribute, and does with it what ``how`` says."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.first, self.last, self.how, self.kept = nn.Linear(8, 8), nn.Linear(8, 3), how, None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.how(self, self.first(x)))

    def doubled(self) -> Any:
        return self.kept * 2


def set_then_read(model: Any, h: Tensor) -> Tensor:
    model.kept = h
    return model.kept * 2  # type: ignore[no-any-return]


def set_then_read_by_a_method(model: Any, h: Tensor) -> Tensor:
    model.kept = h
    return model.doubled()  # type: ignore[no-any-return]


def set_then_read_by_names(model: Any, h: Tensor) -> Tensor:
    setattr(model, "other", h)  # noqa: B010
    return getattr(model, "other") * 2  # type: ignore[no-any-return]  # noqa: B009


def set_alone(model: Any, h: Tensor) -> Tensor:
    model.kept = h
    return h


@pytest.mark.parametrize("how", [set_then_read, set_then_read_by_a_method, set_then_read_by_names, set_alone])
def test_what_is_set_before_it_is_read_is_no_memory(how: Any) -> None:
    model = Keeps(how)
    aug = ga.rewrite(copy.deepcopy(model), "first", rate=0.0, example_inputs=torch.randn(4, 8))
    for rows in (4, 6):
        x = torch.randn(rows, 8)
        assert torch.equal(aug(x), model(x))
        for name in ("kept", "other"):
            mine, theirs = (getattr(m, name, None) for m in (aug.original, model))
            assert mine is theirs is None or torch.equal(mine, theirs)


def read_then_set(model: Any, h: Tensor) -> Tensor:
    out = h if model.kept is None else h + model.kept
    model.kept = h.detach().mean()
    return out


def asked_then_set(model: Any, h: Tensor) -> Tensor:
    if not hasattr(model, "once"):
        model.once = h.detach().mean()
    return h + model.once  # type: ignore[no-any-return]


def handed_on(model: Any, h: Tensor) -> Tensor:
    model.before, model.now = getattr(model, "now", None), h.detach().mean()
    return h if model.before is None else h + model.before


def set_in_the_dict(model: Any, h: Tensor) -> Tensor:
    out = h + vars(model).get("sum", 0.0)
    vars(model)["sum"] = h.detach().mean()
    return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [read_then_set, asked_then_set, handed_on, set_in_the_dict])
def test_what_is_read_before_it_is_set_is_refused(how: Any) -> None:
    model = Keeps(how)
    before = dict(vars(model))
    with pytest.raises(CaptureError):
        ga.rewrite(model, "first", example_inputs=torch.randn(4, 8))
    assert vars(model) == before


@pytest.mark.parametrize("how", [set_then_read, set_alone])
def test_the_plan_names_no_attribute_that_the_graph_sets(how: Any) -> None:
    aug = ga.rewrite(Keeps(how), "first", example_inputs=torch.randn(4, 8))
    assert "kept" not in str(aug.plan)
