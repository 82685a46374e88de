"""Frames, windows and tokens folded into the batch: a call with another number of them than the example is refused.

How many slices of a value belong to a sample is known of the example alone; with another number which are whose would
be a guess, and half-samples would be augmented.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BatchError


class Video(nn.Module):
    """A layer on frames, (B, T, 5) folded to (B·T, 5), of which the mean or every one is returned."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean, self.a, self.branch, self.head = mean, nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(0, 1))
        h = h + self.branch(h)
        return self.head(h.view(x.shape[0], -1, 7).mean(1) if self.mean else h)


def rewritten(mean: bool, backward: str, frames: int = 4, **options: object) -> ga.AugmentedModule:
    torch.manual_seed(0)
    aug = ga.rewrite(
        Video(mean),
        "a",
        transform=ga.Add(torch.zeros(7)),
        stop_grad=True,
        backward=backward,
        example_inputs=torch.randn(6, frames, 5),
        **options,
    )
    assert aug.plan.backward == backward
    return aug


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 8, 12])
def test_another_number_of_frames_is_refused(backward: str, mean: bool, frames: int) -> None:
    aug = rewritten(mean, backward)
    with pytest.raises(BatchError, match=r"in the example each sample had 4 slices, and which are whose"):
        aug(torch.randn(6, frames, 5))
    with pytest.raises(BatchError):
        ga.verify(aug, torch.randn(6, frames, 5))
    for rows in (1, 6, 9):  # the transform adds zeros
        x = torch.randn(rows, 4, 5)
        torch.testing.assert_close(aug(x), aug.original(x))
        assert len(aug.drawn["a"].rows) == rows


@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_of_one_frame_several_are_others(backward: str) -> None:
    aug = rewritten(False, backward, frames=1)
    with pytest.raises(BatchError, match=r"18 slices of dimension 0|9 slices of dimension 0"):
        aug(torch.randn(6, 3, 5))
    aug(torch.randn(9, 1, 5))


@pytest.mark.parametrize("subset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_whatever_the_subset(backward: str, subset: float) -> None:
    aug = rewritten(True, backward, subset=subset)
    with pytest.raises(BatchError):
        aug(torch.randn(6, 8, 5))


@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_compiled_code_refuses_it_as_well(backward: str) -> None:
    aug = rewritten(True, backward)
    torch._dynamo.reset()
    fast = torch.compile(aug, fullgraph=True, backend="eager", dynamic=False)
    x = torch.randn(6, 4, 5)
    torch.testing.assert_close(fast(x), aug.original(x))
    with pytest.raises(Exception, match="which are whose"):
        fast(torch.randn(6, 8, 5))
    x = torch.randn(8, 4, 5)
    torch.testing.assert_close(fast(x), aug.original(x))


def test_what_a_tap_brings_to_the_front_are_samples() -> None:
    model = Video(True)
    tap = ga.tap(model, "a", rows_first=True, example_inputs=torch.randn(6, 4, 5))
    assert tap(torch.randn(9, 4, 5))["a"].shape[0] == 9
    with pytest.raises(BatchError):
        tap(torch.randn(6, 8, 5))


def test_rows_are_not_skipped_by_a_guess() -> None:
    skipped = ga.skip_rows(Video(True), "branch", 0.5, example_inputs=torch.randn(6, 4, 5))
    assert skipped(torch.randn(8, 4, 5)).shape == (8, 3)
    with pytest.raises(BatchError):
        skipped(torch.randn(6, 8, 5))


def test_views_and_rows_at_other_places_are_counted() -> None:
    for views in (2, 3):
        aug = rewritten(False, "dense", views=views)
        assert aug(torch.randn(5, 4, 5)).shape == (5 * 4 * views, 3)
        with pytest.raises(BatchError):
            aug(torch.randn(4, 8, 5))
    recurrent = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    aug = ga.rewrite(recurrent, "0", rows=1, stop_grad=True, example_inputs=torch.randn(9, 6, 5))
    for steps in (2, 9, 12):  # sequence first, of any length
        aug(torch.randn(steps, 6, 5))
        assert len(aug.drawn["0"].rows) == 6


def test_two_threads_with_batches_of_their_own() -> None:
    aug = rewritten(True, "dense")
    failed: list[BaseException] = []

    def run(rows: int) -> None:
        try:
            for _ in range(50):
                aug(torch.randn(rows, 4, 5))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rows,)) for rows in (3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
