"""What opened code hangs on a tensor, keeps for a loss, or has torch's compiler trace: refused, or said in the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError, SiteNotFound

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Out:
    logits: Tensor


class Labelled(nn.Module):
    """Sets an attribute on a tensor, which is then returned, given to a closed module, or read here."""

    def __init__(self, what: str, reader: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.what = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), what
        self.reader = reader

    def forward(self, x: Tensor) -> Any:
        h: Any = self.a(x)
        h.aux = h.square().mean()  # which torch's modules do not read
        if self.what == "returned":
            out: Any = self.c(self.b(h))
            out.aux = h.aux
            return {"logits": (out,)}
        if self.what == "given":
            assert self.reader is not None
            return self.c(self.reader(h=[self.b(x), h]))
        if self.what == "returned in an object":
            inside: Any = self.c(self.b(x))
            inside.aux = h.sum()
            return Out(inside)
        if self.what == "changed in place":
            h.add_(1)
            h.note = "once more"
            return self.c(self.b(x)) + 0 * h.sum(), h
        return self.c(self.b(h.detach() + h.aux))


class Reader(nn.Module):
    def forward(self, h: list[Tensor]) -> Tensor:
        return h[0] + getattr(h[1], "aux", 0.0)


class Hangs(nn.Module):
    """A closed module that sets an attribute on what it returns, as it does in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Any = self.fc(x)
        out.aux = 3
        result: Tensor = out
        return result


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Labelled("returned"), "sets an attribute, 'aux', on a tensor that it returns"),
        (Labelled("given", Reader()), "sets an attribute, 'aux', on a tensor that 'reader' is given"),
        (Labelled("returned in an object"), "sets an attribute, 'aux', on a tensor that it returns"),
        (Labelled("changed in place"), "sets an attribute, '(aux|note)', on a tensor that it returns"),
    ],
    ids=["returned", "given", "in an object", "in place"],
)
def test_an_attribute_that_leaves_the_forward_on_a_tensor_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=f"{message}.*test_labels.py line"):
        ga.rewrite(model, "b", example_inputs=X)


def test_one_that_the_forward_itself_reads_and_one_of_closed_code_are_kept() -> None:
    torch.manual_seed(0)
    model = Labelled("read")
    aug = ga.rewrite(model, "b", rate=0.0, example_inputs=X).train()
    torch.testing.assert_close(aug(X), model(X))
    last = nn.Sequential(nn.Linear(6, 6), Hangs())
    aug = ga.rewrite(last, "0", rate=0.0, example_inputs=X).train()
    assert aug(X).aux == last(X).aux == 3


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        found: Tensor = torch.cond(h.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (h,))
        return self.b(found)


def test_control_flow_that_torch_traces_is_refused_by_its_name() -> None:
    with pytest.raises(CaptureError, match=r"it calls torch\.cond, whose branches.*test_labels.py line"):
        ga.rewrite(Branches(), "a", example_inputs=X)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.c = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.fft.ifft(self.f(torch.fft.fft(self.a(x)))).real)


def test_a_complex_site_is_refused_before_anything_is_built() -> None:
    with pytest.raises(SiteNotFound, match="'f' holds complex numbers"):
        ga.rewrite(Spectrum(), "f", example_inputs=X)


class Auxiliary(nn.Module):
    """Keeps a loss of its own, of what lies before the site, behind it, or of no parameter."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.of = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), of

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        out: Tensor = self.c(self.b(h))
        kept = {
            "before": h,
            "both": h,
            "in a dict": h,
            "behind": out,
            "without gradient": h.detach(),
            "input": x,
        }
        loss = kept[self.of].square().mean()
        loss = loss + out.sum() if self.of == "both" else loss
        self.aux_loss: Any = {"loss": loss} if self.of == "in a dict" else loss
        return out


@pytest.mark.parametrize("of", ["before", "both", "in a dict", "behind", "without gradient", "input"])
def test_a_loss_that_is_kept_beside_the_output_is_said_where_it_passes_the_site(of: str) -> None:
    model = Auxiliary(of)
    aug = ga.rewrite(model, "b", stop_grad=True, subset=1.0, example_inputs=X).train()
    said = [note for note in aug.plan.notes if "self.aux_loss" in note]
    out = aug(X)
    kept = model.aux_loss["loss"] if of == "in a dict" else model.aux_loss
    (out.sum() + kept).backward()
    reached = model.a.weight.grad is not None and bool(model.a.weight.grad.any())
    assert reached == bool(said) == (of in ("before", "both", "in a dict"))
    if said:
        assert "has its gradient below the cut" in said[0]
        assert "test_labels.py line" in said[0]


def test_of_several_sites_each_is_asked_for_itself() -> None:
    """What is kept of what lies between two sites passes the second alone."""

    class Between(Auxiliary):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) * 2
            self.aux_loss = h.square().mean()
            out: Tensor = self.c(self.b(h))
            return out

    aug = ga.rewrite(Between("before"), ["a", "b"], stop_grad=True, example_inputs=X)
    said = [note for note in aug.plan.notes if "self.aux_loss" in note]
    assert [note.split(":")[0] for note in said] == ["'b'"]
