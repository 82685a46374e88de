"""Idioms that public model code is full of. Oracle: the model itself, at other batch sizes, with gradients.

Each stands for files of several authors that were tried; the comment says whose.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

import graphaug as ga
from graphaug.errors import CaptureError, InvalidOption


def same(h: Tensor) -> Tensor:
    return h * 1.0


def agrees(
    model: nn.Module, at: str, *calls: Any, modes: tuple[bool, ...] = (True, False), **options: Any
) -> Any:
    """Compare a rewritten model with a copy of the plain one: values and gradients, of all calls."""
    plain = copy.deepcopy(model)
    first = calls[0] if isinstance(calls[0], tuple) else (calls[0],)
    aug = ga.rewrite(model, at, transform=same, example_inputs=first, allow_bypass=True, **options)
    for mode in modes:
        for call in calls:
            given = call if isinstance(call, tuple) else (call,)
            found, wanted = aug.train(mode)(*given), plain.train(mode)(*given)
            assert type(found) is Tensor
            torch.testing.assert_close(found, wanted)
            found.sum().backward()
            wanted.sum().backward()
            for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None), name
                if p.grad is not None:
                    torch.testing.assert_close(p.grad, q.grad, msg=lambda said, name=name: f"{name}: {said}")
            model.zero_grad()
            plain.zero_grad()
    return aug


# --- functions that hold tensors of the call: the Annotated Transformer, codertimo/BERT-pytorch --------------------


class Sublayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + sublayer(self.norm(x))


def by_lambda(layer: Any, mask: Tensor) -> Any:
    return lambda y: layer.attention(y) * mask


def by_def(layer: Any, mask: Tensor) -> Any:
    def attend(y: Tensor) -> Tensor:
        return layer.attention(y) * mask  # type: ignore[no-any-return]

    return attend


def by_default(layer: Any, mask: Tensor) -> Any:
    return lambda y, m=mask: layer.attention(y) * m


def by_list(layer: Any, mask: Tensor) -> Any:
    held = [mask, mask.float()]
    return lambda y: layer.attention(y) * held[1]


def by_size(layer: Any, mask: Tensor) -> Any:
    rows = mask.size(0)
    return lambda y: layer.attention(y) * rows


def twice_wrapped(layer: Any, mask: Tensor) -> Any:
    inner = by_lambda(layer, mask)
    return lambda y: inner(y) * 2


FUNCTIONS = (by_lambda, by_def, by_default, by_list, by_size, twice_wrapped)


class Layer(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.attention, self.sublayer, self.feed = nn.Linear(4, 4), Sublayer(), nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.feed(self.sublayer(x, self.make(self, mask)))


class Encoder(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.embed, self.layer, self.b = nn.Embedding(9, 4), Layer(make), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(self.layer(self.embed(ids), (ids > 0).unsqueeze(-1)))


@pytest.mark.parametrize(
    "at", ["layer.sublayer", "layer.feed", "layer.attention", "layer.sublayer.norm", "layer"]
)
@pytest.mark.parametrize("make", FUNCTIONS)
def test_a_function_that_holds_tensors_of_the_call_is_followed(make: Any, at: str) -> None:
    ids = [torch.randint(0, 9, (rows, 5)) for rows in (4, 6, 4)]
    aug = agrees(Encoder(make), at, *ids)
    ga.verify(aug, ids[0])


class OfModules(nn.Module):
    """A function that holds no tensor of the call, but a module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.sublayer, self.b = nn.Linear(4, 4), Sublayer(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.sublayer(x, lambda h: self.attention(h)))


@pytest.mark.parametrize("at", ["sublayer", "attention", "sublayer.norm"])
def test_a_function_that_holds_modules_is_followed_into_those_of_a_copy(at: str) -> None:
    aug = agrees(OfModules(), at, torch.randn(4, 4))
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        twin.train()(torch.randn(4, 4)).sum().backward()
        assert twin.attention.weight.grad is not None
        assert aug.attention.weight.grad is None


class Keyword(nn.Module):
    """A module that is called with keywords which functions of ours have as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Scaled(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x, m=2.0, call=x, fn=3.0, original=1.0))


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor, m: float, call: Tensor, fn: float, original: float) -> Tensor:  # type: ignore[override]
        return super().forward(x) * m + call * fn * original


def test_a_module_may_have_any_keyword() -> None:
    agrees(Keyword(), "a", torch.randn(4, 4))


def test_sites_are_listed_where_a_module_is_handed_a_function() -> None:
    listed = {str(site) for site in ga.sites(Encoder(by_lambda), example_inputs=torch.randint(0, 9, (4, 5)))}
    assert any("layer.sublayer.norm" in site for site in listed), listed
    assert any("layer.attention" in site for site in listed), listed


# --- len(x) --------------------------------------------------------------------------------------------------------


class Reshaped(nn.Module):
    """FT-Transformer's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.a(x)
        return self.b(q.reshape(len(q), -1, 4))


def test_the_length_of_a_tensor_is_the_size_of_its_batch_in_every_call() -> None:
    aug = agrees(Reshaped(), "a", torch.randn(4, 6, 4), torch.randn(3, 6, 4), torch.randn(5, 2, 4))
    assert not aug.plan.assumptions


@pytest.mark.parametrize("backward", ["auto", "dense"])
def test_and_its_samples_are_its_rows(backward: Any) -> None:
    x = torch.randn(4, 6, 4)
    aug = ga.rewrite(Reshaped(), "a", subset=0.5, stop_grad=True, backward=backward, example_inputs=x).train()
    aug(x)
    assert len(aug.drawn["a"].rows) == 4


class Fixed(nn.Module):
    """A size in a reshape, which may be that of the batch, or the time in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).reshape(4, -1, 4))


def test_a_batch_of_one_size_and_time_are_not_told_apart_by_guessing() -> None:
    x = torch.randn(4, 6, 4)
    with pytest.raises(InvalidOption, match=r"cannot be told: .* Pass rows=0 or rows=1"):
        ga.rewrite(Fixed(), "b", stop_grad=True, example_inputs=x)
    for rows in (0, 1):
        aug = ga.rewrite(Fixed(), "b", rows=rows, subset=0.5, example_inputs=x).train()
        aug(x)
        assert len(aug.drawn["b"].rows) == x.shape[rows]


# --- what torch makes of sizes: DINO's and SwAV's wrapper for several crops -----------------------------------------


class MultiCrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))

    def forward(self, x: list[Tensor]) -> Tensor:
        sizes = torch.tensor([crop.shape[-1] for crop in x])
        crops = torch.cumsum(torch.unique_consecutive(sizes, return_counts=True)[1], 0)
        start, out = 0, []
        for end in crops:
            out.append(self.backbone(torch.cat(x[start:end])))
            start = end
        return self.head(torch.cat(out))


@pytest.mark.parametrize("at", ["head.1", "backbone@0"])
def test_numbers_that_sizes_alone_tell_are_relied_on(at: str) -> None:
    def crops(*sides: int, rows: int = 4) -> tuple[list[Tensor]]:
        return ([torch.randn(rows, 3, side, side) for side in sides],)

    aug = agrees(MultiCrop(), at, crops(16, 16, 8), crops(16, 16, 8, rows=3))
    with pytest.raises(ga.GraphaugError, match=r"captured for"):
        aug.train()(*crops(16, 8, 8))


# --- names of old code ----------------------------------------------------------------------------------------------


class Sequence(nn.Module):
    """keon/seq2seq, salesforce/awd-lstm-lm and most code before torch 0.4; LSTMs that are flattened before a call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        start = Variable(torch.zeros(1, x.size(0), 4))
        self.rnn.flatten_parameters()
        out, _ = self.rnn(h, (start, Variable(h.mean(1)[None])))
        return self.b(out + Variable(h))


def test_variable_is_the_tensor_detached_and_flattening_changes_nothing() -> None:
    agrees(Sequence(), "a", torch.randn(4, 5, 4), torch.randn(3, 5, 4))


@pytest.mark.parametrize(
    ("made", "way"),
    [
        (lambda h: torch.FloatTensor(h.size(0), 4).fill_(0), r"write torch\.empty or torch\.zeros"),
        (lambda h: torch.FloatTensor([1.0, 2.0, 3.0, 4.0]), r"[wW]rite torch\.tensor"),
        (lambda h: torch.LongTensor([1, 2, 3, 4]), r"[wW]rite torch\.tensor"),
    ],
)
def test_old_constructors_are_refused_with_the_new_ones(made: Any, way: str) -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h + made(h))

    with pytest.raises(CaptureError, match=way):
        ga.rewrite(Old(), "a", example_inputs=torch.randn(6, 4))


class Momentum(nn.Module):
    """facebookresearch/moco."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for p, k in zip(self.q.parameters(), self.k.parameters(), strict=True):
                k.data = k.data * 0.9 + p.data * 0.1
        return self.q(x) + self.k(x)


def test_data_that_are_assigned_are_to_be_written_into() -> None:
    with pytest.raises(CaptureError, match=r"assigns to k\.weight\.data .*\.data\.copy_\(\.\.\.\)"):
        ga.rewrite(Momentum(), "q", allow_bypass=True, example_inputs=torch.randn(4, 4))


# --- scripted functions: lmnt-com/diffwave, fused activations of 2019 to 2021 ---------------------------------------

with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.jit.script
    def silu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @torch.jit.script
    def gated(a: Tensor, b: Tensor, count: int) -> Tensor:
        both = a + b
        for _ in range(2):
            both = both * 0.5
        return torch.tanh(both[:, :count]) * torch.sigmoid(both[:, count:])

    @torch.jit.script
    def asks(x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return x * 2
        return x

    def helper(x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return x * 2
        return x

    @torch.jit.script
    def helped(x: Tensor) -> Tensor:
        return helper(x) + 1

    @torch.jit.script
    def scaled(x: Tensor, by: float) -> Tensor:
        return x * torch.full([4], by)

    @torch.jit.script
    def of_list(x: Tensor, sizes: list[int]) -> Tensor:
        sizes.append(1)
        return x * len(sizes)

    traced = torch.jit.trace(lambda x: x * 2, torch.ones(2, 4))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return gated(self.a(x), silu(self.b(self.a(x))), 4)


@pytest.mark.parametrize("at", ["0.b", "1", "1.a@0", "2"])
def test_a_scripted_function_is_run_as_its_python(at: str) -> None:
    """In opened code, and in modules that stay closed."""
    model = nn.Sequential(Gate(), Gate(), nn.Linear(4, 2))
    agrees(model, at, torch.randn(6, 4), torch.randn(4, 4))
    aug = ga.rewrite(model, at, stop_grad=True, allow_bypass=True, example_inputs=torch.randn(6, 4))
    assert aug.plan.backward == ("sparse" if at in "12" else "dense"), aug.plan.reason
    ga.verify(aug, torch.randn(6, 4))


OTHERWISE = {
    "asks whether it is scripted": asks,
    "calls what asks it": helped,
    "traced": traced,
    "a float of an integer": lambda x: scaled(x, 2),
    "a copy of a list": lambda x: of_list(x, [1, 2]),
}


@pytest.mark.parametrize("function", OTHERWISE.values(), ids=OTHERWISE)
def test_a_scripted_function_that_may_be_another_than_its_python_is_refused(function: Any) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(function(self.a(x)))

    with pytest.raises(
        CaptureError, match=r"was traced, or may do something else as a script than in Python"
    ):
        ga.rewrite(Calls(), "b", example_inputs=torch.randn(2, 4))


# --- distributions: soft actor-critics, mixtures of experts, variational autoencoders -------------------------------

D = torch.distributions
DISTRIBUTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda m, s: D.Normal(m, s.exp()).log_prob(m * 0.5),
    "divergence": lambda m, s: D.kl_divergence(D.Normal(m, s.exp()), D.Normal(0.0, 1.0)),
    "independent": lambda m, s: D.Independent(D.Normal(m, s.exp()), 1).entropy(),
    "categorical": lambda m, s: D.Categorical(logits=m).entropy(),
    "by probabilities": lambda m, s: D.Categorical(probs=s.softmax(-1)).log_prob(torch.zeros(len(m))),
    "bernoulli": lambda m, s: D.Bernoulli(logits=m).log_prob(torch.ones_like(m)),
}


class Policy(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.mean, self.scale, self.loss = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3), loss

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.loss(self.mean(h), self.scale(h))


@pytest.fixture
def validating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's compiler turns it off for the whole process, once it compiled anything."""
    monkeypatch.setattr(D.Distribution, "_validate_args", True)


@pytest.mark.usefixtures("validating")
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_checks_its_parameters_in_the_graph(name: str) -> None:
    aug = agrees(Policy(DISTRIBUTIONS[name]), "a", torch.randn(6, 4), torch.randn(4, 4))
    with (
        pytest.raises((RuntimeError, ValueError), match=r"allow|invalid|Expected"),
        warnings.catch_warnings(),
    ):
        aug.train()(torch.full((6, 4), float("nan")))


@pytest.mark.parametrize("sampled", ["Dirichlet", "Exponential", "OneHotCategoricalStraightThrough"])
def test_what_a_distribution_draws_has_a_gradient(sampled: str) -> None:
    """Some by an autograd function of torch's own."""
    model = Policy(lambda m, s: getattr(D, sampled)(m.softmax(-1)).rsample() * s)
    aug = ga.rewrite(model, "a", allow_bypass=True, example_inputs=torch.randn(6, 4))
    ga.verify(aug, torch.randn(6, 4))


# --- closed modules that only their own data suit -------------------------------------------------------------------


class Embedder(nn.Module):
    """dreamquark's TabNet: categories as columns of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.register_buffer("continuous", torch.tensor([False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        columns = []
        for i, continuous in enumerate(self.continuous):
            columns.append(x[:, i].view(-1, 1) if continuous else self.embedding(x[:, i].long()))
        return torch.cat(columns, 1)


class Tabular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedder, self.a, self.b = Embedder(), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.embedder(x)))


def test_a_closed_module_that_only_runs_on_data_runs_on_the_examples() -> None:
    def table(rows: int) -> Tensor:
        return torch.cat([torch.randint(0, 4, (rows, 1)).float(), torch.randn(rows, 2)], 1)

    agrees(Tabular(), "a", table(6), table(4))
    assert ga.sites(Tabular(), example_inputs=table(6))


class Codebook(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        code = super().forward(torch.cdist(x, self.weight).argmin(-1)).detach()
        return code + 1 if torch.any(code.norm(dim=-1) == 0) else code


class Quantised(nn.Module):
    """lucidrains' vector quantisation: straight through where a gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook, self.project = Codebook(6, 4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        code = self.codebook(x)
        if self.training and x.requires_grad:
            code = x + (code - x).detach()
        return self.project(code)


@pytest.mark.parametrize("seed", range(4))
def test_training_is_compared_with_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), Quantised(), nn.Linear(4, 2))
    agrees(model, "1.project", torch.randn(4, 6, 4), modes=(True,))


# --- lists -----------------------------------------------------------------------------------------------------------


class Perceiver(nn.Module):
    """lucidrains' perceiver: what is turned off stands in a list as None."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.residuals = nn.ModuleList([None, None])  # type: ignore[list-item]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for feed, residual in zip(self.layers, self.residuals, strict=True):
            h = h + feed(h) if residual is None else residual(h, feed(h))
        return self.b(h)


def test_a_list_may_hold_none_in_the_place_of_modules() -> None:
    x = torch.randn(4, 4)
    agrees(Perceiver(), "layers.1", x)
    assert ga.sites(Perceiver(), example_inputs=x)
    with pytest.raises(ga.GraphaugError, match="no known numbers"):
        ga.rewrite(Perceiver(), at=1, example_inputs=x)


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.b(self.a(torch.stack(images)))


def test_tensors_in_a_list_that_are_stacked_may_be_the_samples() -> None:
    images = ([torch.randn(5, 4) for _ in range(6)],)
    with pytest.raises(InvalidOption, match=r"'images' is a list of 6 tensors, .* pass rows=0"):
        ga.rewrite(Stacked(), "b", example_inputs=images)
    aug = ga.rewrite(Stacked(), "b", rows=0, example_inputs=images).train()
    aug(*images)
    assert len(aug.drawn["b"].rows) == 5


def test_an_object_with_tensors_in_a_list_is_named() -> None:
    class Graph:
        def __init__(self) -> None:
            self.features = torch.randn(5, 4)

    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, graphs: list[Any]) -> Tensor:
            return self.b(self.a(torch.cat([g.features for g in graphs])))

    with pytest.raises(CaptureError, match="hold tensors inside of a Graph"):
        ga.rewrite(Graphs(), "a", example_inputs=([Graph(), Graph()],))


# --- sparse adjacencies: graph convolutions --------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = torch.relu(torch.sparse.mm(adjacency, self.a(x)))
        return self.h(torch.relu(torch.sparse.mm(adjacency, self.b(h))))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("compressed", [False, True], ids=["COO", "CSR"])
def test_a_sparse_adjacency_is_an_input_like_others(compressed: bool) -> None:
    adjacency = torch.eye(6).roll(1, 0).to_sparse()
    adjacency = adjacency.to_sparse_csr() if compressed else adjacency
    aug = agrees(Convolutions(), "b", (torch.randn(6, 4), adjacency))
    ga.verify(aug, (torch.randn(6, 4), adjacency))


# --- classes with a hash of their own: torchmetrics ------------------------------------------------------------------


class Hashed(nn.Linear):
    def __hash__(self) -> int:
        return hash((self.in_features, self.scale, id(self)))

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Tells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Hashed(4, 4), Hashed(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * self.a.scale


def test_a_module_may_have_a_hash_that_reads_its_attributes() -> None:
    agrees(Tells(), "a", torch.randn(4, 4))


# --- masks that are made once: pytorch/examples ----------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or self.mask.size(0) != x.size(1):
            self.mask = torch.tril(torch.ones(x.size(1), x.size(1)))
        return self.b(self.mask @ self.a(x))


def test_what_the_first_call_makes_is_to_be_made_before() -> None:
    x = torch.randn(4, 5, 4)
    with pytest.raises(
        CaptureError, match=r"\(test_idioms_of_real_code\.py line \d+\).* run the model once before"
    ):
        ga.rewrite(Masked(), "a", example_inputs=x)
    model = Masked()
    model(x)
    agrees(model, "a", x)


# --- noise of old code: x.data.new().resize_as_(x).normal_() -------------------------------------------------------


def resized(x: Tensor) -> Tensor:
    return x.data.new().resize_(x.shape).fill_(1.0)


def resized_as(x: Tensor) -> Tensor:
    return x.new().resize_as_(x).fill_(1.0)


def resized_empty(x: Tensor) -> Tensor:
    made = torch.empty(0)
    made.resize_(x.shape[0], 4)
    return made.zero_()


def longer(x: Tensor) -> Tensor:
    made = x.detach().clone()
    made.resize_(x.shape[0], 8)
    made.view(-1)[x.numel() :] = 1.0
    return made[:, :4]


def of_shapes(x: Tensor) -> Tensor:
    return torch.ones(torch.broadcast_shapes(x.shape[:-1], (1,)))[:, None]


def of_one_shape(x: Tensor) -> Tensor:
    return x.detach()[:1].expand(torch.broadcast_shapes(x.shape, (1, 4)))


class Beside(nn.Module):
    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.make = nn.Linear(4, 4), nn.Linear(4, 4), make

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.make(h))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [resized, resized_as, resized_empty, longer, of_shapes, of_one_shape])
def test_tensors_that_are_made_longer_and_shapes_that_are_joined(make: Any) -> None:
    agrees(Beside(make), "first", torch.randn(6, 4), torch.randn(3, 4))


def test_a_model_on_meta_may_hold_an_empty_buffer() -> None:
    model = Beside(same)
    model.register_buffer("empty", torch.zeros(0))
    assert "first" in str(ga.rewrite(model.to("meta"), "first", example_inputs=torch.randn(6, 4)).plan)


class Doubled(nn.Linear):
    """Calls its forward, and does more."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2.0  # type: ignore[no-any-return]


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.doubled = Doubled(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubled(x).tanh()


def test_a_call_of_its_own_is_followed_within_a_model_and_named_at_its_root() -> None:
    agrees(Holder(), "doubled", torch.randn(6, 4), torch.randn(3, 4))
    with pytest.raises(CaptureError, match="Doubled has a __call__ of its own"):
        ga.rewrite(Doubled(4, 4), "linear", example_inputs=torch.randn(6, 4))
