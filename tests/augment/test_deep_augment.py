"""The augmentation against the closed forms of its definition, out = where(rows, stop(dropout(h)), h)."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from networks import ModelOutput
from torch import Tensor

from graphaug import DeepAugment
from graphaug.augment.deep_augment import noise_shape
from graphaug.augment.rows import Rows
from graphaug.errors import BatchError, InvalidOption

SHAPES = {"N×C×H×W": (8, 16, 5, 5), "N×T×D": (8, 7, 40), "N×D": (8, 300)}


def ones(*shape: int, **kind: Any) -> Tensor:
    return torch.ones(*shape, **kind).requires_grad_()


def augmented_rows(out: Tensor) -> Tensor:
    """Rows of an augmented batch of ones that are not ones any more."""
    return (out.detach().flatten(1) != 1).any(1)


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 10, 33])
@pytest.mark.parametrize("subset", [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 1.0])
def test_exact_sampling_augments_the_rounded_share_of_rows(rows: int, subset: float) -> None:
    torch.manual_seed(rows)
    out = DeepAugment(rate=0.5, subset=subset)(ones(rows, 200))
    assert int(augmented_rows(out).sum()) == round(subset * rows)


@pytest.mark.parametrize(("rows", "expected"), [(2, 1), (3, 2), (5, 2), (7, 4), (9, 4), (11, 6)])
def test_a_half_rounds_to_the_even_number_of_rows(rows: int, expected: int) -> None:
    torch.manual_seed(0)
    node = DeepAugment(rate=0.5, subset=0.5)
    assert int(augmented_rows(node(ones(rows, 200))).sum()) == expected
    assert node.count_rows(rows) == expected


def test_the_drawn_subsets_are_uniform() -> None:
    """Chi-square over all 20 three-row subsets of six rows: the 99.9% quantile of 19 degrees is 43.8."""
    torch.manual_seed(0)
    node, draws = DeepAugment(subset=0.5), 4000
    subsets = list(itertools.combinations(range(6), 3))
    counts = dict.fromkeys(subsets, 0)
    for _ in range(draws):
        counts[tuple(node.draw_rows(6, torch.device("cpu")).nonzero().flatten().tolist())] += 1
    expected = draws / len(subsets)
    statistic = sum((n - expected) ** 2 / expected for n in counts.values())
    assert len(counts) == len(subsets)
    assert 3 < statistic < 43.8  # far below 3 would be too even for chance


@pytest.mark.parametrize("pairing", ["any", "one-sided"])
def test_bernoulli_sampling_augments_each_row_by_itself(pairing: str) -> None:
    """The counts of rows have a binomial's mean and variance; exact sampling's would have none."""
    torch.manual_seed(0)
    node = DeepAugment(subset=0.3, sampling="bernoulli", pairing=pairing)
    rows, draws = 20, 3000
    drawn = torch.stack([node.draw_rows(rows, torch.device("cpu")) for _ in range(draws)])
    eligible, p = (rows, 0.3) if pairing == "any" else (rows // 2, 0.6)
    share = drawn[:, :eligible].double().mean(0)
    assert (share - p).abs().max() < 4.5 * math.sqrt(p * (1 - p) / draws)
    assert not drawn[:, eligible:].any()
    counts = drawn.sum(1).double()
    variance = eligible * p * (1 - p)
    assert abs(counts.mean() - 0.3 * rows) < 4.5 * math.sqrt(variance / draws)
    assert counts.var().item() == pytest.approx(variance, rel=0.15)
    assert node.count_rows(rows) is None


@pytest.mark.parametrize(("subset", "count"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_one_sided_pairing_draws_from_the_first_view_only(subset: float, count: int) -> None:
    node = DeepAugment(rate=0.5, subset=subset, pairing="one-sided")
    seen = torch.zeros(8, dtype=torch.bool)
    torch.manual_seed(0)
    for _ in range(60):
        rows = augmented_rows(node(ones(8, 100)))
        assert int(rows.sum()) == count
        assert not rows[4:].any()
        seen |= rows
    assert seen[:4].all() == (count > 0)


@pytest.mark.parametrize(("subset", "count"), [(0.0, 0), (0.3, 2), (0.5, 4), (0.6, 4), (1.0, 8)])
@pytest.mark.parametrize(("views", "sampling"), [(2, "exact"), (4, "exact"), (2, "bernoulli")])
def test_views_that_are_drawn_together(subset: float, count: int, views: int, sampling: str) -> None:
    node = DeepAugment(rate=0.5, subset=subset, pairing="together", sampling=sampling)
    node.copies = views
    samples, seen = 4, []
    torch.manual_seed(0)
    for _ in range(60):
        rows = augmented_rows(node(ones(samples * views, 100))).view(views, samples)
        assert (rows == rows[0]).all()
        seen.append(rows[0])
    drawn = torch.stack(seen)
    if sampling == "exact":
        assert (drawn.sum(1) == count // 2).all()
        assert node.count_rows(samples * views) == count // 2 * views
        assert drawn.any(0).all() == (count > 0)
    else:
        assert abs(drawn.double().mean().item() - subset) < 0.14


def test_every_forward_draws_afresh_and_a_seed_repeats_the_draw() -> None:
    node, h = DeepAugment(subset=0.5), ones(40, 30)
    torch.manual_seed(5)
    first, second = node(h), node(h)
    torch.manual_seed(5)
    again = node(h)
    assert not torch.equal(augmented_rows(first), augmented_rows(second))
    assert torch.equal(first, again)


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("granularity", ["element", "channel", "position"])
def test_what_is_dropped_together(shape: tuple[int, ...], granularity: str) -> None:
    torch.manual_seed(0)
    out = DeepAugment(rate=0.4, subset=1.0, granularity=granularity)(ones(*shape)).detach()
    channel = 1 if len(shape) == 4 else len(shape) - 1
    moved = out.movedim(channel, -1).reshape(shape[0], -1, shape[channel])  # rows × positions × channels
    assert torch.isin(out, torch.tensor([0.0, 1 / 0.6])).all()
    within_channels = bool((moved == moved[:, :1]).all())
    within_positions = bool((moved == moved[..., :1]).all())
    one_position = moved.shape[1] == 1
    assert within_channels == (granularity == "channel" or one_position)
    assert within_positions == (granularity == "position")
    decisions = {"element": moved, "channel": moved[:, 0], "position": moved[..., 0]}[granularity]
    kept = (decisions != 0).double().mean().item()
    assert kept == pytest.approx(0.6, abs=4.5 * math.sqrt(0.24 / decisions.numel()))
    rows = decisions.reshape(len(decisions), -1)
    if rows.shape[1] > 10:
        assert len(rows.unique(dim=0)) == len(rows)  # every row by itself


@pytest.mark.parametrize(
    ("shape", "granularity", "expected"),
    [
        ((2, 3, 4, 5), "element", (2, 3, 4, 5)),
        ((2, 3, 4, 5), "channel", (2, 3, 1, 1)),
        ((2, 3, 4, 5), "position", (2, 1, 4, 5)),
        ((2, 3, 4, 5, 6), "channel", (2, 3, 1, 1, 1)),
        ((2, 3, 4, 5, 6), "position", (2, 1, 4, 5, 6)),
        ((2, 7, 9), "channel", (2, 1, 9)),
        ((2, 7, 9), "position", (2, 7, 1)),
        ((2, 9), "channel", (2, 9)),
        ((2, 9), "position", (2, 1)),
    ],
)
def test_the_shape_of_the_decisions(
    shape: tuple[int, ...], granularity: str, expected: tuple[int, ...]
) -> None:
    assert noise_shape(shape, granularity) == expected
    drawn = DeepAugment(granularity=granularity).draw_noise(torch.ones(shape))
    assert drawn.shape == torch.Size(expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_other_rows_are_untouched_bit_for_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    node, h = DeepAugment(rate=0.7, subset=0.5, stop_grad=True), torch.randn(shape, requires_grad=True)
    out = node(h)
    same = (out == h).flatten(1).all(1)
    assert int((~same).sum()) == 4
    (gradient,) = torch.autograd.grad(out.sum(), h)
    assert torch.equal(gradient[same], torch.ones_like(gradient[same]))
    assert not gradient[~same].any()


def test_without_stop_grad_the_gradient_is_that_of_dropout() -> None:
    torch.manual_seed(0)
    h = ones(6, 5, 50)
    out = DeepAugment(rate=0.3, subset=0.5)(h)
    (gradient,) = torch.autograd.grad(out.sum(), h)
    assert torch.equal(gradient, out.detach())


@pytest.mark.parametrize("stop_grad", [False, True])
def test_rate_0_changes_no_value_and_rate_1_drops_all(stop_grad: bool) -> None:
    h = torch.randn(6, 9, requires_grad=True)
    none = DeepAugment(rate=0, subset=0.5, stop_grad=stop_grad)(h)
    assert torch.equal(none, h)
    (gradient,) = torch.autograd.grad(none.sum(), h)
    assert int((gradient == 0).all(1).sum()) == (3 if stop_grad else 0)

    everything = DeepAugment(rate=1, subset=0.5, stop_grad=stop_grad)(h)
    assert torch.isfinite(everything).all()
    assert int((everything == 0).all(1).sum()) == 3
    (gradient,) = torch.autograd.grad(everything.sum(), h)
    assert torch.isfinite(gradient).all()
    assert int((gradient == 0).all(1).sum()) == 3


@pytest.mark.parametrize("granularity", ["element", "channel", "position"])
def test_the_mean_is_preserved(granularity: str) -> None:
    torch.manual_seed(0)
    node = DeepAugment(rate=0.3, subset=0.5, granularity=granularity)
    total = torch.stack([node(torch.ones(16, 6, 4, 4)).mean() for _ in range(1200)])
    deviation = total.std() / math.sqrt(len(total))
    assert abs(total.mean() - 1) < 4.5 * deviation


# --- modes, dtypes, settings --------------------------------------------------------------------


def test_eval_mode_is_the_identity_and_draws_nothing() -> None:
    node, values = DeepAugment(stop_grad=True).eval(), (torch.ones(4, 3), torch.ones(1, 3), None, (1, 2))
    state = torch.get_rng_state()
    assert all(node(h) is h for h in values)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = DeepAugment(rate=0.25, subset=0.5)(ones(10, 100, dtype=dtype))
    assert out.dtype == dtype
    assert int(augmented_rows(out).sum()) == 5
    values = torch.tensor([0, 1, 1 / 0.75], dtype=torch.float64).to(dtype)
    assert torch.isin(out, values).all()


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.float(),
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.to("meta").to_empty(device="cpu"),
    ],
    ids=["half", "bfloat16", "to", "float", "to_empty", "meta"],
)
def test_settings_survive_conversions_exactly(convert: Any) -> None:
    """0.3 of 1000 rows is 300; 0.3 in bfloat16 would be 0.30078 and give 301."""
    torch.manual_seed(0)
    node = convert(DeepAugment(rate=0.1, subset=0.3))
    assert float(node.subset) == 0.3
    assert float(node.rate) == 0.1
    assert int(node.draw_rows(1000, torch.device("cpu")).sum()) == 300
    node.set_subset(0.6)
    assert float(convert(node).subset) == 0.6


def test_autocast_keeps_the_settings_exact() -> None:
    torch.manual_seed(0)
    node = DeepAugment(rate=0.5, subset=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        out = node(torch.ones(1000, 20, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert int(augmented_rows(out).sum()) == 300


def test_set_rate_and_set_subset_act_at_once_and_in_place() -> None:
    torch.manual_seed(0)
    node = DeepAugment(rate=0.5, subset=0.5)
    buffers = node.rate, node.subset
    node.set_rate(1.0)
    node.set_subset(0.25)
    out = node(ones(8, 50))
    assert int((out == 0).all(1).sum()) == 2
    assert node.rate is buffers[0]
    assert node.subset is buffers[1]
    assert "rate=1, subset=0.25" in repr(node)


def test_nothing_of_it_is_in_the_state_dict_and_copies_keep_the_settings() -> None:
    import copy
    import pickle

    node = DeepAugment(rate=0.1, subset=0.3, stop_grad=True, granularity="channel")
    node.set_rate(0.2)
    assert not node.state_dict()
    assert not list(node.parameters())
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert repr(twin) == repr(node)
        assert float(twin.rate) == 0.2
        twin.set_rate(0.9)
        assert float(node.rate) == 0.2


# --- structures ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    hidden: Tensor
    other: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda h, o: (h, o),
        lambda h, o: [h, o],
        lambda h, o: Pair(h, o),
        lambda h, o: {"hidden": h, "other": o},
        lambda h, o: ModelOutput(hidden=h, other=o),
        lambda h, o: ((h, o), o),
        lambda h, o: {0: h, 1: o},
    ],
    ids=["tuple", "list", "namedtuple", "dict", "ModelOutput", "nested", "numbered"],
)
def test_of_a_structure_the_first_entry_is_augmented(wrap: Any) -> None:
    torch.manual_seed(0)
    h, other = ones(6, 100), torch.ones(6, 100)
    value = wrap(h, other)
    out = DeepAugment(rate=0.5, subset=0.5)(value)
    assert type(out) is type(value)
    first, *rest = out.values() if isinstance(out, dict) else out
    if isinstance(first, tuple):
        first, inner = first
        assert inner is other
    assert int(augmented_rows(first).sum()) == 3
    assert rest[0] is other
    assert (h == 1).all()  # the value itself is left alone


def test_a_transformers_output_stays_what_it_is() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    torch.manual_seed(0)
    value = BaseModelOutputWithPooling(last_hidden_state=ones(4, 3, 50), pooler_output=torch.ones(4, 50))
    out = DeepAugment(rate=0.5, subset=0.5)(value)
    assert type(out) is BaseModelOutputWithPooling
    assert int(augmented_rows(out.last_hidden_state).sum()) == 2
    assert out.pooler_output is value.pooler_output
    assert list(out) == list(value)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.ones(0, 5), "0 row"),
        (torch.ones(5), r"shape \(5,\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        (torch.ones(4, 5, dtype=torch.long), "torch.int64"),
        (torch.ones(4, 5, dtype=torch.bool), "torch.bool"),
        (None, "is None"),
        ("text", "str"),
        ((), "tuple"),
        ({}, "dict"),
        ((None, torch.ones(4, 5)), "None"),
    ],
    ids=str,
)
def test_what_is_no_batch_is_refused(h: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        DeepAugment()(h)


def test_one_sided_pairing_needs_two_views() -> None:
    with pytest.raises(BatchError, match=r"\[x1; x2\]: 5 rows is odd"):
        DeepAugment(pairing="one-sided")(torch.ones(5, 3))
    with pytest.raises(BatchError, match="5 rows are no multiple of 2"):
        DeepAugment(pairing="together")(torch.ones(5, 3))


BAD = [-0.1, 1.1, math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], torch.tensor(0.5)]


@pytest.mark.parametrize("name", ["rate", "subset"])
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_a_probability_is_a_number_between_0_and_1(name: str, value: Any) -> None:
    expected = "outside" if isinstance(value, float) else "is no number"
    with pytest.raises(InvalidOption, match=f"{name}=.*{expected}"):
        DeepAugment(**{name: value})
    node = DeepAugment()
    with pytest.raises(InvalidOption, match=f"{name}=.*{expected}"):
        getattr(node, f"set_{name}")(value)
    assert (float(node.rate), float(node.subset)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sampling": "exakt"}, "Did you mean 'exact'"),
        ({"sampling": None}, "Known: 'exact', 'bernoulli'"),
        ({"granularity": "chanel"}, "Did you mean 'channel'"),
        ({"pairing": "onesided"}, "Did you mean 'one-sided'"),
        ({"stop_grad": 1}, "neither True nor False"),
        ({"stop_grad": "no"}, "neither True nor False"),
        ({"pairing": "one-sided", "subset": 0.6}, "at most 0.5"),
    ],
    ids=str,
)
def test_an_unknown_option_names_the_known_ones(option: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        DeepAugment(**option)


def test_one_sided_pairing_keeps_its_limit_when_the_subset_changes() -> None:
    node = DeepAugment(pairing="one-sided", subset=0.5)
    with pytest.raises(InvalidOption, match=r"at most 0\.5"):
        node.set_subset(0.75)
    assert float(node.subset) == 0.5


# --- rows that are samples, wherever they lie -----------------------------------------------------------

PLACES = [Rows(0), Rows(1), Rows(0, 1, 3), Rows(0, 2, 1), Rows(1, 2, 3), Rows(2)]


@pytest.mark.parametrize("granularity", ["element", "channel", "position"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_sample_is_augmented_with_all_of_its_slices_or_not_at_all(place: Rows, granularity: str) -> None:
    count, rate = 6, 0.5
    shape = [7, 8, 40]
    shape[place.dim] = place.outer * count * place.inner
    node = DeepAugment(rate, 0.5, True, granularity=granularity, place=place)
    h = torch.ones(shape, requires_grad=True)
    out = node(h)
    out.sum().backward()
    index = torch.arange(shape[place.dim])
    owner = index // place.inner % count  # the definition
    changed = []
    for sample in range(count):
        own = index[owner == sample]
        slope = h.grad.index_select(place.dim, own)
        value = out.index_select(place.dim, own)
        assert bool((slope == 0).all()) or bool((slope == 1).all())
        changed.append(bool((slope == 0).all()))
        if not changed[-1]:
            assert bool((value == 1).all())
        else:
            assert set(value.unique().tolist()) <= {0.0, 2.0}
    assert sum(changed) == 3


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_samples_are_taken_and_joined_where_they_lie(place: Rows) -> None:
    shape = [7, 8, 9]
    shape[place.dim] = place.outer * 6 * place.inner
    h = torch.randn(shape)
    order = torch.randperm(6)
    first, second = place.take(h, order[:2]), place.take(h, order[2:])
    assert torch.equal(place.take(place.join(first, second), torch.argsort(order)), h)
    index = torch.arange(shape[place.dim])
    for sample in range(6):
        own = h.index_select(place.dim, index[index // place.inner % 6 == sample])
        assert torch.equal(place.take(h, torch.tensor([sample])), own)
        assert torch.equal(place.first(h)[sample].flatten().sort().values, own.flatten().sort().values)


def test_a_value_that_holds_no_whole_samples_is_refused() -> None:
    with pytest.raises(BatchError, match="3 slices"):
        DeepAugment(place=Rows(0, 1, 3))(torch.ones(7, 5))


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"subset": 0.5}, {0}),
        ({"subset": 0.0}, {0}),
        ({"subset": 1.0}, {1}),
        ({"subset": 0.75}, {1}),
        ({"subset": 0.5, "sampling": "bernoulli"}, {0, 1}),
        ({"subset": 0.5, "pairing": "one-sided"}, {0}),
        ({"subset": 0.25, "pairing": "one-sided", "sampling": "bernoulli"}, {0}),
        ({"subset": 0.5, "pairing": "together"}, {0}),
        ({"subset": 0.75, "pairing": "together"}, {1}),
    ],
    ids=str,
)
def test_a_batch_of_one_row_is_augmented_as_the_share_rounds(options: Any, counts: set[int]) -> None:
    torch.manual_seed(0)
    node = DeepAugment(rate=1.0, **options)
    found = {int((node(torch.ones(1, 50)) == 0).all()) for _ in range(30)}
    assert found == counts
