"""Rows are samples: found at the inputs and at the cut, drawn, stopped, verified and split as samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.augment.rows import Rows
from graphaug.errors import InvalidOption, SparseBackwardError, SparseBackwardLost

pytestmark = pytest.mark.few(2)


class Encoder(nn.Module):
    """Images to L×N×D, nn.MultiheadAttention's own layout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2)))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).permute(2, 0, 1)
        return self.head(self.blocks(x).permute(1, 0, 2).mean(1))


class SequenceFirst(nn.Module):
    """L×N×D from the input on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x[0])


class Video(nn.Module):
    """Frames folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 6, 3, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames = x.shape[:2]
        h = self.second(self.first(x.flatten(0, 1)).relu()).mean((2, 3))
        return self.head(h.view(rows, frames, -1).mean(1))


class Views(nn.Module):
    """Every sample and its mirror image, one batch behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.cat([x, x.flip(1)])).relu()
        first, second = self.head(h).split(x.shape[0])
        return first + second


CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...], int, Rows]] = {
    "to sequence first": (Encoder, "blocks.0", (6, 3, 16, 16), 0, Rows(1)),
    "sequence first": (SequenceFirst, "blocks.0", (5, 6, 16), 1, Rows(1)),
    "frames": (Video, "first", (6, 5, 3, 16, 16), 0, Rows(0, 1, 5)),
    "views": (Views, "first", (6, 16), 0, Rows(0, 2, 1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
def test_samples_are_drawn_stopped_and_split_where_they_lie(name: str) -> None:
    build, at, shape, dim, place = CASES[name]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape).double()
    aug = ga.rewrite(model, at, subset=0.5, stop_grad=True, backward="proved", example_inputs=x)
    (augmentation,) = aug.augmentations.values()
    assert augmentation.place == place
    assert f"rows: dimension {place.dim} of" in str(aug.plan)
    assert "6 samples" in str(aug.plan)
    ga.verify(aug, x)
    # by the outputs: as many samples change as were asked for
    aug.train()
    model.train()
    changed = 0
    with torch.no_grad():
        out, plain = aug(x), model(x)
        changed = int(((out - plain).abs().amax(1) > 1e-9).sum())
    assert changed == 3
    # by the input's gradient: a stopped sample has none; sparse and dense are one
    rows = torch.tensor([True, False, True, False, False, True])
    noise = torch.rand(out_shape(aug, x)).double()
    found = []
    for dense in (False, True):
        leaf = x.clone().requires_grad_()
        augmentation.draw_rows = lambda count, device: rows
        augmentation.draw_noise = lambda h: (
            noise if h.shape == noise.shape else place.take(noise, rows.nonzero()[:, 0])
        )
        if dense:
            with aug.dense():
                out = aug(leaf)
        else:
            out = aug(leaf)
        parameters = [p for p in model.parameters() if p.requires_grad]
        found.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *parameters])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    per_sample = found[0][1].movedim(dim, 0).flatten(1).abs().amax(1)
    assert torch.equal(per_sample == 0, rows)


class Recurrent(nn.Module):
    """Time first; in front of the LSTM nothing meets along time either."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Linear(16, 16), nn.LSTM(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.first(x)))[0][-1])


class Attentive(nn.Module):
    """Tokens first, as torch's attention has them by default, and a mask with the samples first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Embedding(20, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, 3)

    def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(tokens))
        return self.head(self.rnn(h, h, h, key_padding_mask=pad)[0].mean(0))


class EachToken(nn.Module):
    """Nothing meets along any dimension but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


class Contrasted(EachToken):
    """The loss is in the forward: samples meet behind every cut."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x).mean(1)
        return z @ z.T


TOKENS = torch.randint(20, (7, 4), generator=torch.Generator().manual_seed(0))
PAD = torch.arange(7) > torch.tensor([6, 4, 5, 6])[:, None]
FAR: dict[str, tuple[type[nn.Module], Any, int, int]] = {
    "an LSTM behind": (Recurrent, torch.randn(7, 4, 16), 1, 4),
    "attention behind": (Attentive, TOKENS, 1, 4),
    "attention with a mask behind": (Attentive, (TOKENS, PAD), 1, 4),
    "nothing behind": (EachToken, torch.randn(7, 4, 16), 0, 7),
    "a loss behind": (Contrasted, torch.randn(7, 4, 16), 0, 7),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if "LSTM" in n else n for n in FAR])
def test_what_meets_behind_a_cut_tells_where_the_samples_lie_before_it(name: str) -> None:
    cls, x, dim, count = FAR[name]
    model = cls()
    sites = ["first", "head", ["first", "head"]] + (["rnn"] if hasattr(model, "rnn") else [])
    for at in sites:
        plan = ga.rewrite(model, at, stop_grad=True, example_inputs=x, dry_run=True)
        assert f"{count} samples" in plan.sites[0].rows
        if at != "head":
            assert plan.sites[0].rows.startswith(f"dimension {dim} of")
        assert not any("NOT proved" in note for note in plan.notes)


@pytest.mark.long
def test_sites_has_the_samples_where_a_rewrite_has_them() -> None:
    found = {site.path: site for site in ga.sites(Recurrent(), example_inputs=torch.randn(7, 4, 16))}
    assert (found["first"].rows, found["rnn"].rows, found["head"].rows) == ("1", "1", "0")
    assert found["rnn"].backward == "sparse"


def test_rows_that_are_told_are_taken_where_nothing_met_yet() -> None:
    plan = ga.rewrite(Recurrent(), "first", rows=0, example_inputs=torch.randn(7, 4, 16), dry_run=True)
    assert plan.sites[0].rows.startswith("dimension 0 of")


def out_shape(aug: Any, x: Tensor) -> tuple[int, ...]:
    """The shape of the value at the cut."""
    (site,) = aug.plan.sites
    assert site.shape is not None
    return tuple(site.shape)


@pytest.mark.long
def test_a_dimension_that_contradicts_the_proof_is_an_error() -> None:
    model, x = SequenceFirst(), torch.randn(5, 6, 16)
    with pytest.raises(InvalidOption, match="along dimension 1 nothing meets"):
        ga.rewrite(model, "blocks.0", rows=0, example_inputs=x)
    with pytest.raises(InvalidOption, match="dimensions 0 to 2"):
        ga.rewrite(model, "blocks.0", rows=3, example_inputs=x)
    for wrong in (True, -1, 1.0, "x"):
        with pytest.raises(InvalidOption, match="rows="):
            ga.rewrite(model, "blocks.0", rows=wrong, example_inputs=x)  # type: ignore[arg-type]
    told = ga.rewrite(model, "blocks.0", rows=1, example_inputs=x)
    assert told.plan.sites[0].rows == "dimension 1 of 5×6×16, 6 samples"


@pytest.mark.parametrize("at", ["input", "1"])
def test_a_dimension_that_the_forward_takes_in_one_size_only_is_an_error(at: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(InvalidOption, match=r"another size of dimension 1 the forward fails.* give rows=0"):
        ga.rewrite(model, at, rows=1, stop_grad=True, example_inputs=torch.randn(4, 8))


def test_an_example_of_one_sample_without_a_batch_dimension_is_pointed_out() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
    (note,) = ga.rewrite(model, "1", example_inputs=torch.randn(8)).plan.notes
    assert "if the example is one sample, add a batch dimension" in note
    with pytest.raises(InvalidOption, match="if the example is one sample, add a batch dimension"):
        ga.rewrite(model, "2", example_inputs=torch.randn(8))


def test_where_several_dimensions_would_do_it_is_the_first() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    plan = ga.rewrite(model, "1", example_inputs=torch.randn(3, 5, 4)).plan
    assert plan.sites[0].rows == "dimension 0 of 3×5×4, 3 samples"
    told = ga.rewrite(model, "1", rows=1, example_inputs=torch.randn(3, 5, 4)).plan
    assert told.sites[0].rows == "dimension 1 of 3×5×4, 5 samples"


@pytest.mark.long
def test_without_examples_rows_are_proved_as_well() -> None:
    plan = ga.rewrite(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "0").plan
    assert plan.sites[0].rows == "dimension 0 of 2×4, 2 samples"
    assert not any("rows" in note for note in plan.notes)
    plan = ga.rewrite(nn.TransformerEncoderLayer(4, 2), "norm1").plan  # sequence first
    assert plan.sites[0].rows.startswith("dimension 1 of 2×16×4")


@torch.library.custom_op("graphaug_tests::ranked", mutates_args=())
def ranked(x: Tensor) -> Tensor:
    """The rank of each entry in its row, by an operation that no rule follows."""
    return x.argsort(1).argsort(1).to(x.dtype)


@ranked.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("graphaug_tests::ranked_in_batch", mutates_args=())
def ranked_in_batch(x: Tensor) -> Tensor:
    """The rank of each entry among those of other rows."""
    return x.argsort(0).argsort(0).to(x.dtype)


@ranked_in_batch.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Ranked(nn.Module):
    """Each entry times its rank, and what else is done to it."""

    def __init__(self, rank: Any, then: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.rank, self.then = rank, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(x * self.rank(x.detach()))


def test_what_is_unknown_is_tried_and_said_to_be() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Ranked(ranked), nn.Linear(6, 6), nn.Linear(6, 2))
    x = torch.randn(8, 6)
    plan = ga.rewrite(model, "2", stop_grad=True, example_inputs=x).plan
    assert plan.backward == "sparse"
    assert plan.reason.startswith(
        "tried, not proved (has no rule for graphaug_tests::ranked in '1' (test_samples.py line"
    )
    assert any("NOT proved" in note for note in plan.notes)
    with pytest.raises(SparseBackwardError, match="not proved independent: has no rule for graphaug_tests"):
        ga.rewrite(model, "2", stop_grad=True, backward="proved", example_inputs=x)


@pytest.mark.parametrize(
    ("rank", "then", "said"),
    [
        (ranked_in_batch, torch.tanh, "a row of the prefix changes when row"),
        (ranked, lambda x: x - x.mean(0), "rows meet: mean runs over the rows in '1'"),
        (ranked, lambda x: x + (x.mean(0) - x.mean(0).detach()), "rows meet: mean runs over the rows in '1'"),
        (ranked, lambda x: x * len(x), "place"),
    ],
)
def test_rows_that_meet_in_or_behind_what_is_unknown_are_found(rank: Any, then: Any, said: str) -> None:
    """In it by trying, behind it by its rules."""
    model = nn.Sequential(nn.Linear(6, 6), Ranked(rank, then), nn.Linear(6, 6), nn.Linear(6, 2))
    plan = ga.rewrite(model, "2", stop_grad=True, example_inputs=torch.randn(8, 6)).plan
    assert plan.backward == "dense"
    assert said in plan.reason or "number of rows" in plan.reason


def _norm(model: Any) -> None:
    model[0][0] = nn.BatchNorm1d(16).double()


def _hook(model: Any) -> None:
    model[1].register_forward_hook(lambda module, args, out: out - out.mean(0))


def _switch(model: Any) -> None:
    model[2].centre = True


def _method(model: Any) -> None:
    plain = model[1].forward
    model[1].forward = lambda x: plain(x) - plain(x).mean(0)


class Switched(nn.Module):
    """Centres over the batch once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = False

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.centre else x


@pytest.mark.parametrize("change", [_norm, _hook, _switch, _method])
@pytest.mark.parametrize("copied", [False, True])
def test_a_prefix_that_changes_after_rewriting_is_run_dense(
    change: Callable[[Any], None], copied: bool
) -> None:
    import copy

    torch.manual_seed(0)
    block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
    model = nn.Sequential(block, nn.Linear(16, 16), Switched(), nn.Linear(16, 4), nn.Linear(4, 4)).double()
    x = torch.randn(16, 16).double()
    aug = ga.rewrite(model, "3", rate=0.0, stop_grad=True, example_inputs=x).train()
    assert aug.plan.backward == "sparse", aug.plan.reason
    if copied and change is not _method:  # a lambda's closure is not copied
        aug = copy.deepcopy(aug)
    change(aug.original)
    with aug.dense():
        wanted = aug(x)
    with pytest.warns(SparseBackwardLost, match="since it was rewritten") as said:
        found = aug(x)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    aug(x)  # once is enough
    assert len(said) == 1
    assert aug.plan.backward == "dense"
    assert "since it was rewritten (before: sparse, rows proved independent" in aug.plan.reason
    assert aug.plan.reason.partition(" since")[0] in str(said[0].message)


class CentredInEval(nn.Module):
    """Lets rows meet in the mode that nobody trains in."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - x.mean(0)


def test_a_module_that_asks_for_its_mode_is_not_proved_in_the_other() -> None:
    model = nn.Sequential(
        nn.Linear(16, 16), nn.Dropout(0.5), CentredInEval(), nn.Linear(16, 16), nn.Linear(16, 4)
    )
    x = torch.randn(16, 16)
    aug = ga.rewrite(model, "3", stop_grad=True, example_inputs=x).train()
    assert aug.plan.reason.startswith("rows proved independent")
    model[1].eval()  # torch's own: no rows meet in either mode
    aug(x)
    assert aug.plan.backward == "sparse"
    model[2].eval()
    with pytest.warns(SparseBackwardLost, match="CentredInEval '2' is in eval mode"):
        aug(x)
    assert aug.plan.backward == "dense"
    aug.train()
    aug(x)
    assert aug.plan.backward == "sparse"


def test_what_is_put_back_is_sparse_again() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    x = torch.randn(16, 16)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x).train()
    before = aug.plan
    handle = model[0].register_forward_hook(lambda module, args, out: out * 1)
    with pytest.warns(SparseBackwardLost, match=r"Linear '0' has another hook"):
        aug(x)
    assert aug.plan.backward == "dense"
    handle.remove()
    aug(x)
    assert aug.plan == before


PENALTIES: list[Tensor] = []


class Penalised(nn.Module):
    """Hands out a penalty through a list that is nobody's attribute, of all rows or of each."""

    def __init__(self, of_each: bool) -> None:
        super().__init__()
        self.layer, self.of_each = nn.Linear(6, 6), of_each

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        PENALTIES.append(h.square().mean(1) if self.of_each else h.square().mean())
        return h


@pytest.mark.parametrize("of_each", [True, False])
def test_a_penalty_on_the_side_is_not_lost(of_each: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Penalised(of_each), nn.Linear(6, 6), nn.Linear(6, 2))
    plan = ga.rewrite(model, "2", stop_grad=True, example_inputs=torch.randn(8, 6)).plan
    PENALTIES.clear()
    assert plan.backward == "dense"
    assert "kept outside" in plan.reason or "rows meet" in plan.reason


@pytest.mark.parametrize(
    "options", [{}, {"subset": 0.0}, {"subset": 1.0}, {"sampling": "bernoulli"}, {"subset": 0.75}]
)
@pytest.mark.parametrize("stop_grad", [True, False])
def test_the_last_batch_of_an_epoch_may_have_one_row(options: dict[str, Any], stop_grad: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    aug = ga.rewrite(model, "1", example_inputs=torch.randn(4, 8), stop_grad=stop_grad, **options).train()
    aug(torch.randn(1, 8)).sum().backward()
    assert all(p.grad is not None for p in model[2].parameters())


def test_a_plan_says_why_the_samples_are_taken_along_another_dimension() -> None:
    """Tokens of a batch whose mean is taken off: nothing meets along the time alone."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h - h.mean(0))

    plan = ga.rewrite(Centred(), "first", example_inputs=torch.randn(6, 5, 8), dry_run=True)
    assert "dimension 1 of the inputs is taken for the samples, as along dimension 0 mean" in " ".join(
        plan.notes
    )
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    assert "is taken for the samples" not in str(
        ga.rewrite(plain, "0", example_inputs=torch.randn(6, 5, 8)).plan
    )


class TwoInputs(nn.Module):
    """Ids of two ranks; the rows of the batch meet, so that every dimension of the first input is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, codes: Tensor) -> Any:
        h = self.embed(ids).sum(1) + self.embed(codes).sum((1, 2))
        return self.head(self.body(h - h.mean(0)))


def test_the_first_input_is_that_of_the_forward_whatever_the_order_they_are_given_in() -> None:
    given = {"ids": torch.randint(9, (4, 5)), "codes": torch.randint(9, (4, 3, 2))}
    torch.manual_seed(0)
    model = TwoInputs()
    plans = [
        ga.rewrite(model, "body", stop_grad=True, example_inputs={name: given[name] for name in order}).plan
        for order in (("ids", "codes"), ("codes", "ids"))
    ]
    assert str(plans[0]) == str(plans[1])
    assert plans[0].backward == "dense"
