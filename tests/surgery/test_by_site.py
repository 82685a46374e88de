"""What is set at sites, read from them and given to them. Oracle: plain lists and dicts of what was handed over."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from networks import ConvNet
from torch import Tensor

import graphaug as ga
from graphaug.augment.transform import PLAIN, Context, Needs, Transform
from graphaug.errors import BatchError, InvalidOption, SiteNotFound

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])


class Listens(Transform):
    """Adds nothing, and keeps what it is given."""

    needs = Needs(labels=True)
    seen: tuple[Context, ...] = ()

    def draw(self, rows: Tensor, context: Context = PLAIN) -> dict[str, Tensor]:
        self.seen = (*self.seen, context)
        return {"rows": rows}

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return rows + 0 * draws["rows"]


def listening() -> tuple[ga.AugmentedModule, Listens]:
    aug = ga.rewrite(ConvNet(), "layer1", transform=Listens(), subset=1.0)
    (node,) = aug.augmentations.values()
    node.transform.seen = ()
    return aug, node.transform


def test_numbers_that_are_set_together_are_checked_together() -> None:
    policy = ga.Policy([ga.Noise(0.1), ga.Dropout(0.2)], p=[1.0, 0.0])
    aug = ga.rewrite(ConvNet(), {"layer1": policy, "layer2": ga.Noise(0.1)})
    aug.set("layer1", p_0=0.0, p_1=1.0, subset=0.25)
    numbers = aug.augmentations["layer1"].numbers()
    assert (numbers["p_0"], numbers["p_1"], numbers["subset"]) == (0.0, 1.0, 0.25)
    with pytest.raises(InvalidOption, match="probability above 0"):
        aug.set("layer1", p_1=0.0, subset=0.5)
    assert aug.augmentations["layer1"].numbers() == numbers
    with pytest.raises(InvalidOption, match="outside"):
        aug.set(subset=0.75, sigma=-1.0)  # of which layer1 has the first only
    assert [a.numbers()["subset"] for a in aug.augmentations.values()] == [0.25, 0.5]


@pytest.mark.long
def test_a_site_is_named_by_its_text_or_by_itself() -> None:
    aug = ga.rewrite(ConvNet(), {"layer1": 0.5, "layer2": ga.Noise(0.1)})
    aug(IMAGES)
    for site, node in aug.augmentations.items():
        assert torch.equal(aug.drawn[site].rows, aug.drawn[str(site)].rows)
        aug.set(site, subset=0.25)
        assert node.numbers()["subset"] == 0.25
    first = next(iter(aug.augmentations))
    aug.set_rate({first: 0.1})
    assert aug.augmentations[first].numbers()["rate"] == 0.1
    other = next(iter(ga.rewrite(ConvNet(), "stem").augmentations))
    with pytest.raises(SiteNotFound, match="not augmented at 'stem'"):
        aug.set(other, subset=0.5)
    tapped = ga.tap(ConvNet(), "layer1")
    with pytest.raises(SiteNotFound, match="It is augmented nowhere"):
        _ = tapped.drawn["layer1"]
    with pytest.raises(InvalidOption, match="There are none"):
        tapped.set(rate=0.1)


def test_labels_of_views_are_of_every_view() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", transform=Listens(), views=2, example_inputs=IMAGES)
    with (
        pytest.raises(BatchError, match=r"Of 2 views give torch\.cat\(\[labels\] \* 2\)"),
        aug.given(labels=LABELS),
    ):
        aug(IMAGES)
    with aug.given(labels=torch.cat([LABELS] * 2)):
        assert aug(IMAGES).shape == (8, 5)


def test_what_is_given_within_is_added_to_what_is_given_around() -> None:
    aug, transform = listening()
    source = torch.zeros(4, 6, 8, 8)
    with aug.given(labels=LABELS):
        aug(IMAGES)
        with aug.given(source=source, labels=None):
            aug(IMAGES)
        with contextlib.suppress(ZeroDivisionError), aug.given(source=source):
            aug(IMAGES)
            _ = 1 / 0
        aug(IMAGES)
    aug(IMAGES)
    given = [(c.labels is not None, c.source is not None) for c in transform.seen]
    assert given == [(True, False), (False, True), (True, True), (True, False), (False, False)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": [0, 1, 0, 1]}, r"given\(labels=…\) takes a torch.Tensor, not a value of type list"),
        ({"source": 0.5}, "takes a torch.Tensor, not a value of type float"),
        ({"generator": LABELS}, "a torch.Generator, not a value of type Tensor"),
        ({"labels": torch.tensor(1)}, "one entry for each row of the batch, not a single number"),
        ({"batch": LABELS}, "'batch' cannot be given"),
    ],
)
def test_what_is_no_tensor_cannot_be_given(entries: dict[str, Any], message: str) -> None:
    aug, transform = listening()
    with pytest.raises(InvalidOption, match=message), aug.given(**entries):
        pass
    aug(IMAGES)
    assert transform.seen == (PLAIN,)


def test_what_was_drawn_is_told_without_gradient_in_a_mapping_too() -> None:
    aug, _ = listening()
    aug(IMAGES)
    drawn = aug.drawn["layer1"]
    assert not drawn.draws["rows"].requires_grad
    with pytest.raises(BatchError, match="no lam were drawn"):
        _ = drawn.lam
