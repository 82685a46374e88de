"""CKA against a closed NumPy computation, and what must hold of it whatever the features are."""

import collections
import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphaug import errors
from graphaug.analysis import cka
from graphaug.analysis.activations import sample_features

BLOCKS = ["0", "2", "4"]


def network(seed=0, width=6, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).to(dtype)


def data(rows=24, seed=1, dtype=torch.float64):
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def activations(model, x, names=BLOCKS):
    """By forward hooks."""
    found = {}
    handles = [
        model.get_submodule(n).register_forward_hook(
            lambda _, __, out, n=n: found.update({n: out.detach().clone()})
        )
        for n in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [found[n].flatten(1).numpy() for n in names]


def biased(x, y, kernel="linear"):
    """Kornblith et al., Eq. 2, with an explicit centring matrix."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n

    def gram(z):
        if kernel == "linear":
            return z @ z.T
        distances = np.linalg.norm(z[:, None] - z[None], axis=-1)
        # torch's median is the lower of the two in the middle
        sigma = np.sort(distances[~np.eye(n, dtype=bool)])[(n * (n - 1) - 1) // 2]
        return np.exp(-(distances**2) / (2 * sigma**2))

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    k, m = gram(x), gram(y)
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def hsic_unbiased(x, y):
    """Song et al. (2012), Eq. 5, term by term."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_biased_equals_the_closed_form(kernel):
    model, x = network(), data()
    found = cka(model, x, BLOCKS, estimator="biased", kernel=kernel)
    acts = activations(model, x)
    expected = [[biased(a, b, kernel) for b in acts] for a in acts]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-10)
    assert found.rows == found.columns == tuple(BLOCKS)
    assert found.samples == 24


def test_unbiased_sums_the_estimator_over_batches():
    model, x = network(), data(30)
    found = cka(model, x, BLOCKS, batch_size=8)  # 8, 8, 8, 6
    parts = [activations(model, part) for part in x.split(8)]
    sums = [[sum(len(p[0]) * hsic_unbiased(p[i], p[j]) for p in parts) for j in range(3)] for i in range(3)]
    expected = [[sums[i][j] / np.sqrt(sums[i][i] * sums[j][j]) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-10)


def test_two_models_with_sites_of_their_own():
    first, second, x = network(0), network(1, width=9), data()
    found = cka(first, x, BLOCKS, other=second, other_sites=["2", "4"], estimator="biased")
    expected = [[biased(a, b) for b in activations(second, x, ["2", "4"])] for a in activations(first, x)]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-10)
    assert (found.rows, found.columns) == (("0", "2", "4"), ("2", "4"))
    same = cka(first, iter([x]), BLOCKS, other=first)  # what can be read only once is shared
    torch.testing.assert_close(same.values, cka(first, x, BLOCKS).values)


class Maps(nn.Module):
    """Two sites whose features are a function of the same input."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.b = first, second

    def forward(self, x):
        return self.b(self.a(x))


class Apply(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(4, 20),
    width=st.integers(1, 12),
    scale=st.floats(1e-3, 1e3),
    estimator=st.sampled_from(["biased", "unbiased"]),
    kernel=st.sampled_from(["linear", "rbf"]),
)
def test_invariant_to_orthogonal_maps_scale_and_shift(seed, rows, width, scale, estimator, kernel):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))[0]
    shift = torch.randn(width, generator=g, dtype=torch.float64)
    model = Maps(nn.Identity(), Apply(lambda h: scale * (h @ q) + shift))
    found = cka(model, x, ["a", "b"], estimator=estimator, kernel=kernel).values
    torch.testing.assert_close(found, torch.ones(2, 2, dtype=torch.float64), atol=1e-7, rtol=0)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(4, 12),
    kind=st.sampled_from(["constant", "one feature", "duplicates", "huge", "tiny", "minute", "vast", "zero"]),
    estimator=st.sampled_from(["biased", "unbiased"]),
    kernel=st.sampled_from(["linear", "rbf"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_always_finite_and_bounded(seed, rows, kind, estimator, kernel, dtype):
    make = {
        "constant": lambda h: torch.full_like(h, 3.7),
        "one feature": lambda h: h[:, :1],
        "duplicates": lambda h: h[torch.zeros(len(h), dtype=torch.long)],
        "huge": lambda h: h * 1e8,
        "tiny": lambda h: h * 1e-8,
        "minute": lambda h: h * 1e-11,
        "vast": lambda h: h * 1e15,
        "zero": lambda h: h * 0,
    }[kind]
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values = cka(Maps(nn.Identity(), Apply(make)), x, ["a", "b"], estimator=estimator, kernel=kernel).values
    assert values.isfinite().all()
    assert (values.abs() <= 1).all()
    assert values[0, 0] == 1
    if kind in ("constant", "duplicates", "zero"):
        assert values[1].tolist() == [0, 0]
    else:
        assert values[1, 1] == 1
        assert values[0, 1] == values[1, 0]


@pytest.mark.parametrize("rows", [5, 7, 33])
@pytest.mark.long
def test_a_matrix_of_one_model_is_symmetric_to_the_last_bit(rows):
    """A matrix product may add up its two triangles in other orders."""
    for seed in range(20):
        found = cka(network(seed, dtype=torch.float32), data(rows, seed, torch.float32), BLOCKS).values
        assert torch.equal(found, found.T)
        assert found.diagonal().tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_site_that_one_sample_alone_activates_shares_nothing(dtype):
    """Its unbiased HSIC is 0: what is left is rounding, which is not to be normalised."""
    for seed in range(8):
        x = torch.zeros(16, 5, dtype=dtype)
        x[3] = data(1, seed, dtype)
        q = torch.linalg.qr(data(5, seed + 1, dtype))[0]
        found = cka(Maps(nn.Identity(), Apply(lambda h, q=q: h @ q)), x, ["a", "b"]).values
        assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_stay_duplicates_under_a_rotation(dtype):
    """Where most samples are one, the median distance is 0, and only equal samples are alike."""
    for seed in range(10):
        x = data(64, seed, dtype)
        x[:61] = x[0]
        q = torch.linalg.qr(data(5, seed + 1, dtype))[0]
        model = Maps(nn.Identity(), Apply(lambda h, q=q: h @ q))
        found = cka(model, x, ["a", "b"], kernel="rbf").values
        torch.testing.assert_close(found, torch.ones(2, 2, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-11, 1e-8, 1e8, 1e15])
def test_the_scale_of_float32_features_does_not_matter(scale):
    x = data(dtype=torch.float32)
    model = Maps(nn.Identity(), Apply(lambda h: h.clone()))
    scaled = Maps(nn.Identity(), Apply(lambda h: scale * h))
    for kernel in ("linear", "rbf"):
        found, expected = (
            cka(m, x, ["b"], other=network(dtype=torch.float32), other_sites=BLOCKS, kernel=kernel).values
            for m in (scaled, model)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("batch", [0, 1])
def test_activations_that_are_not_finite_are_an_error(kernel, value, batch):
    x = data(16)

    def spoil(h):
        bad = torch.zeros(8, 5, dtype=torch.bool)
        bad[3, 2] = True
        return torch.where(bad & h[:1, :1].eq(x[8 * batch, 0]), value, h)

    model = Maps(nn.Identity(), Apply(spoil))
    with pytest.raises(errors.DataError, match="'b' are not finite"):
        cka(model, x, ["a", "b"], kernel=kernel, batch_size=8)
    with pytest.raises(errors.DataError, match="'b' are not finite"):
        cka(network(), x, BLOCKS, other=model, other_sites=["a", "b"], kernel=kernel, batch_size=8)


def test_the_biased_estimator_warns_of_several_batches(recwarn):
    model, x = network(), data(24)
    cka(model, x, BLOCKS, estimator="biased")
    cka(model, x, BLOCKS, batch_size=8)
    assert not recwarn
    with pytest.warns(UserWarning, match="depends on the size of the batches") as said:
        cka(model, x, BLOCKS, estimator="biased", batch_size=8)
    assert len(said) == 1


@pytest.mark.long
def test_no_activation_outlives_its_batch():
    model, refs, alive = network(), [], []
    handles = [
        model.get_submodule(n).register_forward_hook(lambda _, __, out: refs.append(weakref.ref(out)))
        for n in BLOCKS
    ]

    def loader():
        for part in data(40).split(8):
            gc.collect()
            alive.append(sum(r() is not None for r in refs))
            yield part

    found = cka(model, loader(), BLOCKS)
    for handle in handles:
        handle.remove()
    assert found.samples == 40
    assert len(refs) >= 5 * len(BLOCKS)
    assert alive == [0] * 5


def test_nothing_is_left_behind():
    model = network().train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cka(model, data(), "**")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_is_changed_in_place_later_is_read_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)).double()
    out = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    out.load_state_dict(model.state_dict())
    x = data()
    torch.testing.assert_close(cka(model, x).values, cka(out, x).values)


def test_a_module_called_twice_is_two_sites():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(5, 5), nn.Tanh()

        def forward(self, x):
            return self.act(self.fc(self.act(self.fc(x))))

    assert cka(Twice(), data(dtype=torch.float32)).rows == ("fc@0", "act@0", "fc@1", "act@1")


# --- tokens -----------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(20, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, input_ids, attention_mask=None):
        h = self.mix(self.embed(input_ids))
        return self.head(h[:, 0])


def sentences(rows=12, length=7):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (rows, length), generator=g)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=g)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths).long()}


@pytest.mark.parametrize("tokens", ["mean", "cls", "flatten", "each"])
def test_tokens_and_padding(tokens):
    model, batch = Encoder().double(), sentences()
    found = cka(model, [batch], ["embed", "mix"], tokens=tokens, estimator="biased")
    mask = batch["attention_mask"].bool().numpy()

    def features(h):
        h = h.detach().numpy()
        if tokens == "mean":
            return np.stack([row[keep].mean(0) for row, keep in zip(h, mask, strict=True)])
        return {"cls": h[:, 0], "flatten": h.reshape(len(h), -1), "each": h[mask]}[tokens]

    embedded = model.embed(batch["input_ids"])
    x, y = features(embedded), features(model.mix(embedded))
    np.testing.assert_allclose(found.values[0, 1], biased(x, y), atol=1e-10)
    assert found.samples == (mask.sum() if tokens == "each" else 12)


def test_of_a_pattern_sites_without_tokens_are_left_out():
    found = cka(Encoder(), [sentences()], "**", tokens="each")
    assert found.rows == ("embed", "mix")
    with pytest.raises(errors.SiteNotFound, match="no site with tokens"):
        cka(network(), data(), "**", tokens="each")


def test_of_a_pattern_in_a_list_what_does_not_fit_is_left_out():
    model = Maps(Apply(lambda h: h.repeat(2, 1)), Apply(lambda h: h[: len(h) // 2]))
    for sites in (["*"], ["b", "*"], [Apply], ["**", Apply]):
        assert cka(model, data(12), sites).rows == ("b",)
    with pytest.raises(errors.BatchError, match="'a' has 24 rows"):
        cka(model, data(12), ["**", "a"])  # named


def test_means_over_tokens_in_half_precision_are_taken_in_float32():
    h = torch.full((2, 3000, 4), 1.0).bfloat16()
    mask = torch.ones(2, 3000, dtype=torch.bool)
    mask[:, 2000:] = False
    for m in (None, mask):
        pooled = sample_features(h, "mean", m, "site")
        assert pooled.dtype == torch.float32
        assert pooled.tolist() == [[1.0] * 4] * 2


def test_each_token_needs_tokens():
    with pytest.raises(errors.BatchError, match="'head' has no tokens"):
        cka(Encoder(), [sentences()], ["mix", "head"], tokens="each")


# --- data -------------------------------------------------------------------------------------


def test_forms_of_data_agree():
    model, x = network(), data(24)
    labels = torch.zeros(24)
    expected = cka(model, x, BLOCKS, batch_size=8).values
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=8)
    forms = [loader, list(x.split(8)), (part for part in x.split(8)), [[part] for part in x.split(8)]]
    forms += [[{"input": part, "label": 0} for part in x.split(8)]]
    for form in forms:
        torch.testing.assert_close(cka(model, form, BLOCKS).values, expected)
    torch.testing.assert_close(cka(model, {"input": x}, BLOCKS, batch_size=8).values, expected)


class Optional(Encoder):
    """As transformers' models: nothing is required."""

    def forward(self, input_ids=None, past=None, attention_mask=None):
        return super().forward(input_ids, attention_mask)


class Both(Encoder):
    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("kind", [Encoder, Optional, Both])
def test_a_mask_in_a_tuple_is_the_mask(kind):
    model, batch = kind().double(), sentences()
    labels = torch.arange(12)
    expected = cka(model, [batch], ["embed", "mix"]).values
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for form in ((ids, mask), (ids, mask, labels), [ids, mask.bool(), labels]):
        torch.testing.assert_close(cka(model, [form], ["embed", "mix"]).values, expected)
    if kind is not Both:
        unmasked = cka(model, [{"input_ids": ids}], ["embed", "mix"]).values
        assert not torch.allclose(unmasked, expected)
        for form in ((ids, labels), (ids, ids), (ids, mask.double()), (ids,)):  # no mask among them
            torch.testing.assert_close(cka(model, [form], ["embed", "mix"]).values, unmasked)


def test_the_mask_of_a_tuple_reaches_the_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model, batch = transformers.BertModel(config).double(), sentences()
    sites = ["embeddings", "encoder.layer.1"]
    expected = cka(model, [batch], sites).values
    found = cka(model, [(batch["input_ids"], batch["attention_mask"], torch.arange(12))], sites).values
    torch.testing.assert_close(found, expected)


def test_a_mapping_that_is_no_dict_is_shared_by_two_models():
    model, x = network(), data(24)
    whole = collections.UserDict(input=x)  # as a tokenizer's BatchEncoding
    expected = cka(model, x, BLOCKS, other=network(1), batch_size=8).values
    torch.testing.assert_close(cka(model, whole, BLOCKS, other=network(1), batch_size=8).values, expected)


def test_a_short_last_batch_is_left_out():
    model, x = network(), data(19)
    found = cka(model, x, BLOCKS, batch_size=8)  # 8, 8, 3
    assert found.samples == 16
    torch.testing.assert_close(found.values, cka(model, x[:16], BLOCKS, batch_size=8).values)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"data": data(3)}, errors.BatchError, "needs batches of 4 samples or more; the largest here has 3"),
        ({"data": data(1), "estimator": "biased"}, errors.BatchError, "2 samples or more"),
        ({"data": []}, errors.DataError, "hold no batch"),
        ({"data": data(0)}, errors.DataError, "hold no batch"),
        ({"data": "digits"}, errors.DataError, "data is a str"),
        ({"data": 3}, errors.DataError, "data is an int"),
        (
            {"data": [{"image": data()}]},
            errors.DataError,
            "holds nothing that Sequential.forward takes: input",
        ),
        ({"data": [np.zeros((8, 5))]}, errors.DataError, "a batch is a ndarray"),
        ({"estimator": "unbaised"}, errors.InvalidOption, "Did you mean 'unbiased'"),
        ({"kernel": "cosine"}, errors.InvalidOption, "Known: 'linear', 'rbf'"),
        ({"tokens": "max"}, errors.InvalidOption, "tokens='max'"),
        ({"bandwidth": 0}, errors.InvalidOption, "bandwidth must be positive"),
        ({"batch_size": 0}, errors.InvalidOption, "batch_size"),
        ({"sites": "layer1"}, errors.SiteNotFound, "layer1"),
        ({"sites": ["0", "9"]}, errors.SiteNotFound, "'9'"),
        ({"model": 3}, errors.UnsupportedModel, "nn.Module"),
    ],
)
def test_bad_input(arguments, error, match):
    arguments = {"model": network(), "data": data(), "sites": BLOCKS, **arguments}
    with pytest.raises(error, match=match):
        cka(arguments.pop("model"), arguments.pop("data"), **arguments)


def test_sites_with_another_batch_size():
    model = Maps(Apply(lambda h: h.repeat(2, 1)), Apply(lambda h: h[: len(h) // 2]))
    with pytest.raises(errors.BatchError, match="'a' has 24 rows where the other sites have 12"):
        cka(model, data(12), ["a", "b"])
    assert cka(model, data(12), "**").rows == ("b",)  # a pattern takes what fits


def test_prints_as_a_table():
    text = str(cka(network(), data(), BLOCKS))
    assert text.startswith("CKA (unbiased, linear), 24 samples\n")
    assert text.splitlines()[2].startswith("  0  0   1.00")
