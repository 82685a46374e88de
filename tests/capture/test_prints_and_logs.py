"""What a forward only tells, in a print, a log or a message: its graph does without. Oracle: the plain forward."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

logger = logging.getLogger(__name__)


class Tells(nn.Module):
    def __init__(self, tell) -> None:
        super().__init__()
        self.first, self.second, self.tell, self.note = nn.Linear(4, 4), nn.Linear(4, 2), tell, ""

    def reset(self) -> None:
        self.note = "reset"

    def reset_below(self, number: float) -> None:
        if number < 0:
            self.reset()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scale = self.tell(self, h)
        return self.second(h) * (1 if scale is None else scale)


def text(m, h):
    print(f"mean {h.mean()} {h.std():.3f}", "{:>8}".format(h.max()))  # noqa: UP032
    print("%.2f %d" % (h.mean(), h.argmax()))  # noqa: UP031


def numbers(m, h):
    print(h.mean().item(), round(h.std().item(), 2), int(h.sum()), float(h.min()), len(h))
    print("%d" % h.shape[0])  # noqa: UP031


def of_torch(m, h):
    print(torch.isnan(h).any(), bool(h.any()), h.mean() > 0, len(h) > 100)


def log(m, h):
    logger.warning("mean %.3f of %d", h.mean(), len(h))
    logger.warning(f"max {h.max():.3f}")


def assertion(m, h):
    assert h.dim() == 2, f"{h.mean():.3f} of {len(h)}"
    if h.dim() > 2:
        raise ValueError(f"{h.mean():.3f} of {len(h)}")


TOLD = [text, numbers, of_torch, log, assertion]


@pytest.mark.parametrize("tell", TOLD, ids=lambda f: f.__name__)
def test_it_is_neither_an_assumption_nor_a_node_that_asks(tell) -> None:
    torch.manual_seed(0)
    model = Tells(tell)
    aug = ga.rewrite(model, at="first", subset=0.0, example_inputs=torch.randn(6, 4))
    assert not [a for a in aug.plan.assumptions if "shape" in a or "len" in a]
    assert not [n for n in aug.graph.nodes if n.target in ("item", len)]
    for rows in (6, 9):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(aug(x), model(x), rtol=0, atol=0)


def test_what_is_logged_reaches_no_handler_of_a_recording_and_stands_in_the_plan(caplog) -> None:
    aug = ga.rewrite(Tells(log), at="first", example_inputs=torch.randn(6, 4))
    assert "nan" not in caplog.text
    (note,) = aug.plan.notes
    assert re.match(
        r"what the forward prints or logs \(test_prints_and_logs.py line \d+, test_prints_and_logs.py line \d+\)",
        note,
    )


def kept(m, h):
    m.note = f"{h.mean():.3f}"


def made_before(m, h):
    said = f"{h.mean()}"
    print(said)


def used(m, h):
    print(scale := float(h.mean()))
    return scale


def decided(m, h):
    print(m.reset() if h.std() < 1e-6 else "fine")


def decided_by_a_number(m, h):
    print("fine", h.std().item() < 1e-6 and m.reset())


def handed_on(m, h):
    print(m.reset_below(float(h.std())))


def asserted(m, h):
    torch._assert(int(h.shape[0]) == 6, f"not {h.mean():.2f}")


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (
            kept,
            r"makes a text of the data in .*\(test_prints_and_logs.py line \d+\)\. Make it inside of the print",
        ),
        (
            made_before,
            r"makes a text of the data in .*\(test_prints_and_logs.py line \d+\)\. Make it inside of the print",
        ),
        (used, r"needs the number in the data in"),
        (decided, "branches on the data in"),
        (decided_by_a_number, "branches on the data in|depends on data"),
        (handed_on, r"needs the number in the data in .*std"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_kept_of_it_is_refused(tell, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(Tells(tell), at="first", example_inputs=torch.randn(6, 4))


def decided_by_its_length(m, h):
    print(m.reset() if len(h) > 6 else "fine")


def handed_on_its_length(m, h):
    print(m.reset_below(6 - len(h)))


@pytest.mark.parametrize("tell", [decided_by_its_length, handed_on_its_length])
def test_what_decides_by_a_size_is_an_assumption(tell) -> None:
    aug = ga.rewrite(Tells(tell), at="first", example_inputs=torch.randn(6, 4))
    with pytest.raises(AssumptionViolated):
        aug(torch.randn(9, 4))


def test_the_condition_of_an_assertion_is_no_message() -> None:
    aug = ga.rewrite(Tells(asserted), at="first", example_inputs=torch.randn(6, 4))
    with pytest.raises(AssumptionViolated):
        aug(torch.randn(9, 4))
