"""Capture without inputs: models of every file of torchvision, and one block of every third timm family."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import graphaug as ga
from graphaug.select.model_structure import ancestors

pytestmark = pytest.mark.few(2)

timm = pytest.importorskip("timm")
torchvision_models = pytest.importorskip("torchvision.models")

CLASSIFIERS = torchvision_models.list_models(module=torchvision_models)


class OnMeta(TorchFunctionMode):
    """Parameters on the meta device; numbers that a constructor computes with stay real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand):
            kwargs["device"] = kwargs.get("device") or "meta"
        return func(*args, **kwargs)


def built(build: Callable[..., nn.Module], name: str, **options: object) -> nn.Module:
    """Build a model without computing or storing a parameter."""
    with OnMeta(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these libraries warn about their own defaults
        return build(name, **options)


def at_depth(model: nn.Module, depth: int) -> str | None:
    """The middle one of the modules with parameters at this depth that a forward calls."""
    paths = [
        path
        for path, m in model.named_modules()
        if path.count(".") == depth - 1
        and path
        and list(m.parameters())
        and type(m) not in (nn.ModuleList, nn.ModuleDict)
        and "aux" not in path.lower()  # only training runs these
    ]
    return paths[len(paths) // 2] if paths else None


# what the forwards of torchvision ask themselves: a ViT for its image size, ShuffleNet for the halves that it unpacks
ASKED = {
    "x.shape[2] == 224",
    "x.shape[3] == 224",
    "cat([expand, permute]).dim() == 3",
    *(f"len(stage{s}.{i}.chunk(2)) == 2" for s in (2, 3, 4) for i in range(8)),
}


def depths() -> list[tuple[str, int]]:
    """The first model of each file at two depths and the last at one; the others differ in sizes only.

    `make coverage` has all of them.
    """
    files: dict[str, list[str]] = {}
    for name in CLASSIFIERS:
        files.setdefault(torchvision_models.get_model_builder(name).__module__, []).append(name)
    found = []
    for names in files.values():
        found += [(names[0], depth) for depth in (1, 2)]
        found += [(name, len(found) % 3 + 1) for name in names[1:][-1:]]
    return [(n, d) for n, d in found if d < 3 or not n.startswith(("alexnet", "vgg"))]  # which have two


@pytest.mark.parametrize(("name", "depth"), depths())
@pytest.mark.long
def test_a_torchvision_model_is_captured_without_inputs(name: str, depth: int) -> None:
    model = built(torchvision_models.get_model, name, weights=None)
    path = at_depth(model, depth)
    assert path is not None
    plan = ga.rewrite(model, path, allow_bypass=True, dry_run=True)
    assert [site.request.target.path for site in plan.sites] == [path]
    assert set(plan.opened) == set(ancestors(path)[1:])
    assert set(plan.assumptions) <= ASKED


def families() -> dict[str, list[str]]:
    """The models of every timm family, those that call themselves small first."""
    found: dict[str, list[str]] = {}
    for name in timm.list_modules():
        if models := timm.list_models(module=name):
            found[name] = sorted(models, key=_size)
    return found


_SMALL = {"test": 0, "atto": 1, "femto": 2, "pico": 3, "nano": 4, "xxs": 4, "micro": 4, "xxt": 4, "tiny": 5}
_LARGE = {"large": 12, "huge": 13, "giant": 14, "gigantic": 14, "enormous": 14, "xlarge": 13, "so400m": 13}


def _size(name: str) -> tuple[int, int, str]:
    """A guess of a model's size from its name: a word for it, then the numbers in it."""
    words = re.split(r"[_.]", name)
    rank = min((value for word, value in (_SMALL | _LARGE).items() if word in words), default=8)
    return rank, sum(map(int, re.findall(r"\d+", name))), name


def one_block(model: nn.Module) -> str:
    """A module in the middle of the model's longest container of blocks."""
    lists: list[tuple[str, list[str]]] = [
        (path, [name for name, child in m.named_children() if list(child.children())])
        for path, m in model.named_modules()
        if isinstance(m, (nn.Sequential, nn.ModuleList))
    ]
    path, blocks = max(lists, key=lambda e: (len(e[1]), -e[0].count(".")), default=("", []))
    if not blocks:  # stages that are attributes
        return at_depth(model, 2) or ""
    return f"{path}.{blocks[len(blocks) // 2]}".removeprefix(".")


@pytest.mark.parametrize("part", range(4))
@pytest.mark.long
def test_a_block_of_every_third_timm_family_is_captured_without_inputs(part: int) -> None:
    """`make coverage` has all of them."""
    for family, names in list(families().items())[3 * part :: 12]:
        model = built(timm.create_model, names[0])
        path = one_block(model)
        try:
            plan = ga.rewrite(model, path, allow_bypass=True, dry_run=True)
        except ga.GraphaugError as error:
            raise AssertionError(f"{family}: {names[0]} at {path}: {error}") from error
        assert len(plan.sites) == 1
