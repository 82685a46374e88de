"""The table of methods is true: it is that of the results, has every built-in option, and its rows come out again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import graphaug as ga
from benchmarks.transforms.measure import record
from benchmarks.transforms.methods import METHODS, Method
from benchmarks.transforms.steps import by_formula, difference, made, network, otherwise
from benchmarks.transforms.table import PAGE, RESULTS, on_page, table
from graphaug.augment.transform import Transform
from graphaug.augment.transforms import drop, mix, noise, pca, statistics
from graphaug.augment.transforms.call import as_transform
from graphaug.augment.transforms.files import BUILT_IN

FOUND: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["methods"]
TOLERANCE = 1e-10  # in float64, of values and gradients; the published formula is to be met within 1e-6
DENSE = ("PatchDropout", "sites of their own", "deep views", "Manifold Mixup, a layer drawn")


def test_the_page_has_the_table_of_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert on_page(page, table(FOUND)) == page
    shown = [(row["method"], row["source"], row["code"], row["formula"]) for row in FOUND]
    assert shown == [(m.name, m.source, m.code, m.formula) for m in METHODS]


@pytest.mark.parametrize("row", FOUND, ids=[row["method"] for row in FOUND])
def test_a_row_of_the_table_holds_what_is_claimed(row: dict[str, Any]) -> None:
    for found in filter(None, (row["passed"], row["stopped"])):
        assert found["difference"] <= TOLERANCE
        assert found["compiled"]["difference"] <= TOLERANCE
        assert {"copy", "pickle"} <= set(found["copies"])
        assert all(found["copies"].values())
        if row["method"] != "moved weights":  # which has no plan
            assert len(found["claims"]) >= 3
        if row["code"].startswith("aug = ga.rewrite"):
            assert found["plan_file"] == ("refused" if row["method"].startswith("any ") else "equal")
    if row["stopped"] is not None:
        assert row["stopped"]["backward"] == ("dense" if row["method"] in DENSE else "sparse")


class Listening:
    """Stands for graphaug in a method's line, and keeps the transforms that go to a site."""

    def __init__(self) -> None:
        self.found: list[Transform] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(ga, name)

    def rewrite(self, model: Any, at: Any, transform: Any = None, **_: Any) -> None:
        for given in at.values() if isinstance(at, dict) else filter(None, [transform]):
            made = as_transform(given)
            self.found += [made, *getattr(made, "transforms", [])]


def of_kind(kind: type[Transform]) -> list[Any]:
    """The transforms of a kind in all lines of the table."""
    listening = Listening()
    for method in METHODS:
        if "ga.rewrite" in method.make:
            exec(method.make, {"ga": listening, "torch": torch, "model": None, "vector": torch.ones(3)})
    return [t for t in listening.found if type(t) is kind]


@pytest.mark.parametrize(
    ("kind", "option", "values"),
    [
        (ga.Dropout, "granularity", drop.GRANULARITIES),
        (ga.Noise, "distribution", noise.DISTRIBUTIONS),
        (ga.Noise, "relative", noise.RELATIVE),
        (ga.Mix, "mode", mix.MODES),
        (ga.Mix, "partner", mix.PARTNERS),
        (ga.Mix, "per", mix.PER),
        (ga.Mix, "within_class", (False, True)),
        (ga.Mix, "detach", (False, True)),
        (ga.Statistics, "method", statistics.METHODS),
        (ga.PCA, "remove", pca.REMOVE),
        (ga.PCA, "over", pca.OVER),
        (ga.PCA, "gradient", (False, True)),
        *((kind, "", ()) for kind in BUILT_IN),
    ],
)
def test_the_table_has_every_built_in_with_every_option(
    kind: type[Transform], option: str, values: tuple[Any, ...]
) -> None:
    found = of_kind(kind)
    assert found
    if option:
        assert {getattr(t, option) for t in found} == set(values)


@pytest.mark.few(1)
@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=[m.name for m in METHODS])
@pytest.mark.long
def test_a_method_is_its_formula(method: Method, stop_grad: bool) -> None:
    if stop_grad and "ga.rewrite" not in method.make:
        pytest.skip("nothing is stopped by it")
    model = network()
    aug = made(method, model, **({"stop_grad": True} if stop_grad else {}))
    found, expected = (by_formula if method.sites else otherwise)(aug, method, model)
    assert difference(found, expected) <= TOLERANCE
    assert any(gradient.any() for gradient in found[1:])


@pytest.mark.long
def test_a_recorded_row_comes_out_again() -> None:
    (method,) = (m for m in METHODS if m.name == "MixStyle")
    (row,) = (row for row in FOUND if row["method"] == method.name)
    again = json.loads(json.dumps(record(method)))
    for kind in ("passed", "stopped"):
        for name in ("backward", "copies", "plan_file", "claims"):
            assert again[kind][name] == row[kind][name]
        assert again[kind]["compiled"]["numbers_set"] == row[kind]["compiled"]["numbers_set"]
        assert again[kind]["difference"] <= TOLERANCE


def test_a_wrong_formula_would_be_seen() -> None:
    """The comparison is no comparison of a thing with itself."""
    (method,) = (m for m in METHODS if m.name == "Gaussian noise")
    model = network()
    wrong = Method("", "", method.make, "", {"1": lambda r: r.h + 0.1001 * r.drawn.noise})
    assert difference(*by_formula(made(wrong, model), wrong, model)) > 1e-5
