"""A model rewritten for a run: a subset that augments no row of any batch is refused, with one that augments one."""

import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.config.settings import Settings
from graphaug.errors import ConfigError
from graphaug.graphs.config import GraphsConfig
from graphaug.text.config import SimCSEConfig
from graphaug.vision.config import PretrainConfig


def drawn(config):
    """How many rows a step augments, once the model is rewritten for it."""
    net = nn.Sequential(OrderedDict(site=nn.Linear(3, 3), last=nn.Linear(3, 3)))
    with deep_augmented(net, config, lambda: torch.zeros(4, 3), "net") as trained:
        (augmentation,) = trained.augmentations.values()
        return int(augmentation.draw_rows(config.rows_at_once(), torch.device("cpu")).sum())


@pytest.mark.parametrize("pairing", ["any", "one-sided", "together"])
@pytest.mark.long
@settings(max_examples=30)
@given(batch_size=st.integers(2, 70), subset=st.floats(1e-4, 0.5))
def test_a_subset_of_no_row_is_refused_and_the_one_that_is_proposed_augments_some(
    pairing, batch_size, subset
):
    """Against the draw of the rewritten model itself; ``together`` draws both views of an image, or none."""
    config = Settings(at=("site",), batch_size=batch_size, subset=subset, pairing=pairing)
    try:
        assert drawn(config) > 0
    except ConfigError as error:
        assert subset * batch_size * (1 if pairing == "together" else 2) < 1
        enough = float(re.search(r"From subset=(\S+) on", str(error))[1])
        assert enough > subset
        assert drawn(replace(config, subset=enough)) == (2 if pairing == "together" else 1)


def test_what_asks_for_no_row_or_draws_each_row_for_itself_is_not_refused():
    config = Settings(at=("site",), batch_size=4, subset=0.01)
    with pytest.raises(ConfigError, match=r"^subset=0.01: of the 8 rows .* From subset=0.0626 on"):
        drawn(config)
    assert drawn(replace(config, subset=0.0)) == 0
    drawn(replace(config, sampling="bernoulli"))


@pytest.mark.parametrize(("first", "last"), [(0.01, 0.5), (0.5, 0.01), (0.0, 0.07)])
def test_a_subset_that_changes_may_augment_no_row_for_a_while(first, last):
    config = PretrainConfig(at=("site",), batch_size=4, subset=first, subset_end=last)
    drawn(config)
    with pytest.raises(ConfigError, match=r"^subset=0.01 and subset_end=0.02: of the 8 rows"):
        drawn(replace(config, subset=0.01, subset_end=0.02))


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (PretrainConfig(batch_size=64), 128),
        (PretrainConfig(batch_size=64, accumulate=4), 32),
        (PretrainConfig(batch_size=64, devices=2), 64),
        (PretrainConfig(batch_size=64, method="moco"), 64),
        (PretrainConfig(batch_size=64, method="supervised"), 64),
        (SimCSEConfig(batch_size=64), 128),
        (SimCSEConfig(batch_size=64, cache=8), 16),
        (GraphsConfig(batch_size=64), 128),
        (GraphsConfig(batch_size=64, method="simgrace"), 64),
    ],
)
def test_the_rows_that_pass_a_site_at_once(config, rows):
    assert config.rows_at_once() == rows
