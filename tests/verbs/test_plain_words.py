"""What rewrite and verify say where an option has no effect, and in their messages: against the numbers by hand."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError, InvalidOption, SparseBackwardError


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


def x(rows: int) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transform", [None, ga.Noise(0.1)])
@pytest.mark.parametrize(("rows", "subset", "said"), [(10, 0.04, "of 10 rows"), (1, 0.5, "of 1 row")])
def test_a_subset_that_rounds_to_nothing_is_said(rows: int, subset: float, said: str, transform: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    said = f"{said} none is augmented: subset={subset:g} rounds to 0"
    aug = ga.rewrite(model, "0", subset=subset, transform=transform, example_inputs=x(rows))
    assert f"'0': {said} in a batch like the example" in aug.plan.notes
    aug.train()(x(rows))
    assert not aug.drawn["0"].rows.any()
    text = str(ga.verify(aug, x(rows)))
    assert f"'0': {said}" in text
    assert "rows augmented" not in text


@pytest.mark.parametrize(
    ("rows", "options"), [(10, {"subset": 0.06}), (10, {"subset": 0.0}), (2, {"views": 2}), (1, {"views": 2})]
)
def test_nothing_is_said_where_rows_are_augmented_or_none_were_wanted(rows: int, options: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    aug = ga.rewrite(model, "0", example_inputs=x(rows), **options)
    assert "none is augmented" not in str(aug.plan)
    aug.train()(x(rows))
    assert bool(aug.drawn["0"].rows.any()) == (options.get("subset", 1) > 0)
    assert "none is augmented" not in str(ga.rewrite(model, "0", subset=0.1).plan)  # a guess has two rows


def test_a_rate_beside_a_dict_of_them_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"rate=0\.9 is of no site, as at= says"):
        ga.rewrite(chain(), {"0": 0.2}, rate=0.9)
    with pytest.raises(InvalidOption, match=r"rate=0\.9 is of no site"):
        ga.rewrite(chain(), {"0": 0.2, "2": ga.Noise(0.1)}, rate=0.9)
    assert (
        ga.rewrite(chain(), ["0", lambda site: site.path == "2"], rate=0.9).plan.sites[1].request.rate == 0.9
    )


def test_the_settings_of_a_training_give_a_rate_or_a_dict_of_them() -> None:
    pytest.importorskip("torchvision")
    from graphaug.vision.config import PretrainConfig

    model = nn.Sequential()
    for name in ("first", "last", "head"):
        model.add_module(name, nn.Linear(4, 4))
    for settings, expected in (({"rates": (0.2, 0.3)}, [0.2, 0.3]), ({"rate": 0.4}, [0.4, 0.4])):
        config = PretrainConfig(at=("first", "last"), **settings)
        plan = ga.rewrite(model, config.where(config.at), **config.deep_augmentation()).plan
        assert [site.request.rate for site in plan.sites] == expected


def test_stop_grad_is_the_way_out_where_it_is_off() -> None:
    with pytest.raises(SparseBackwardError, match=r"\. Use stop_grad=True, or backward='dense'\.$"):
        ga.rewrite(chain(), "0", backward="sparse", example_inputs=x(6))
    with pytest.raises(SparseBackwardError, match=r"\. Use backward='dense'\.$"):
        ga.rewrite(chain(), "2", stop_grad=True, backward="proved", example_inputs=x(6))


def test_one_is_singular() -> None:
    options: dict[str, Any] = {"stop_grad": True, "example_inputs": x(6)}
    assert "statistics of 1 BatchNorm," in ga.rewrite(chain(), "2", backward="sparse", **options).plan.reason
    frozen = str(ga.rewrite(chain(), "2", freeze="before", example_inputs=x(6), dry_run=True))
    assert "running statistics of 1 module are kept" in frozen


def test_torch_logs_nothing_beside_our_error(caplog: pytest.LogCaptureFixture) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return self.a(one) @ self.b.weight + two

    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it hands nothing on to the root
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(CaptureError):
            ga.rewrite(Two(), "a", example_inputs=(torch.randn(2, 5), torch.randn(2, 4)))
    finally:
        logger.removeHandler(caplog.handler)
    assert "failed while attempting to run meta" not in caplog.text
