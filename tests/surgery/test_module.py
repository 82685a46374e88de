"""The rewritten model is a module like any other. Oracle: the plain model, and what nn.Module does."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor

import graphaug as ga
from graphaug.surgery.rewritten.packing import pack_graph, unpack_graph

pytestmark = pytest.mark.few(4)

TAKEN = (
    "plan",
    "original",
    "dense",
    "augmentations",
    "graph",
    "code",
    "set_rate",
    "set",
    "drawn",
    "given",
    "recompile",
    "print_readable",
)
ODD = ("class", "import", "it's", 'a "quoted" one', "$", "two words", "ünï", "1")


class Named(nn.Module):
    """A child, and one in a container, of the given name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.called, self.stem, self.inner = name, nn.Linear(8, 8), nn.ModuleDict()
        self.add_module(name, nn.Linear(8, 8))
        self.inner.add_module(name, nn.Linear(8, 8)) if name not in dir(nn.ModuleDict) else None

    def forward(self, x: Tensor) -> Tensor:
        h = self._modules[self.called](self.stem(x))
        return self.inner[self.called](h) if len(self.inner) else h


class Methods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)])

    def encode(self, x: Tensor) -> Tensor:
        return self.first(x)

    def embed(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def width(self) -> int:
        return self.first.in_features

    def set_checkpointing(self, on: bool) -> None:
        for block in self.blocks:
            block.checkpointing = on

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.encode(x))


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 8)


def test_a_model_that_was_compiled_in_place_is_copied_and_pickled(x: Tensor) -> None:
    """As a plain one, without what was compiled."""
    model = nn.Sequential(nn.Linear(x.shape[-1], 8), nn.Tanh(), nn.Linear(8, 2))
    aug = ga.rewrite(model, "1", subset=0.0)
    aug.compile(backend="eager")
    aug(x)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("name", [*TAKEN, *ODD])
@pytest.mark.long
def test_a_child_may_have_any_name(name: str, x: Tensor) -> None:
    model = Named(name)
    aug = ga.rewrite(model, "stem", subset=0.0)
    for mode in (True, False):
        aug.train(mode)
        assert torch.equal(aug(x), model(x))
        assert torch.equal(copy.deepcopy(aug)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(aug))(x), model(x))
    assert aug.get_submodule(name) is model._modules[name]
    assert list(aug.state_dict()) == list(model.state_dict())
    assert torch.equal(torch.compile(aug.train(), backend="eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("name", ["class", "plan", "graph", "self", "_wrapped_call"])
def test_a_child_of_any_name_is_a_site(name: str, x: Tensor) -> None:
    aug = ga.rewrite(Named(name), name, rate=0.5, stop_grad=True)
    ga.verify(aug, x)


def test_children_added_later_switch_modes_and_are_copied(x: Tensor) -> None:
    aug = ga.rewrite(chain(), "1")
    aug.projector = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    for mode in (False, True):
        aug.train(mode)
        assert all(m.training is mode for m in aug.projector.modules())
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert list(twin.state_dict()) == list(aug.state_dict())
        assert torch.equal(twin.projector.eval()(x[:, :2]), aug.projector.eval()(x[:, :2]))
        assert twin.projector[0].weight is not aug.projector[0].weight


def test_a_converted_norm_is_the_model_s_as_well() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    aug = nn.SyncBatchNorm.convert_sync_batchnorm(ga.rewrite(model, "1"))
    assert isinstance(aug._modules["1"], nn.SyncBatchNorm)
    assert ga.strip(aug)[1] is aug._modules["1"]


def test_functional_call_stacking_averaging_and_export(x: Tensor) -> None:
    model = chain()
    aug = ga.rewrite(model, "1").eval()
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    assert torch.equal(functional_call(aug, other, (x,)), functional_call(model.eval(), other, (x,)))
    stacked, _ = stack_module_state([aug])
    assert list(stacked) == [name for name, _ in model.named_parameters()]
    assert torch.equal(AveragedModel(aug).eval()(x), model(x))
    assert torch.equal(torch.export.export(aug, (x,)).module()(x), model(x))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_an_ensemble_is_stacked_of_plain_models(x: Tensor, randomness: str) -> None:
    """Each rewritten model has a class of its own, as every GraphModule; the names of the states are the same."""
    models = [chain() for _ in range(3)]
    aug = ga.rewrite(copy.deepcopy(models[0]), "1", subset=0.5, stop_grad=True, example_inputs=x)
    stacked = stack_module_state(models)

    def run(*state: Any) -> Tensor:
        return functional_call(aug, state, (x,))

    aug.eval()
    expected = torch.stack([model.eval()(x) for model in models])
    torch.testing.assert_close(torch.vmap(run, randomness=randomness)(*stacked), expected)
    aug.train()
    found = torch.vmap(run, randomness=randomness)(*stacked)
    changed = (found - expected).abs().amax(2) > 1e-5
    assert changed.sum(1).tolist() == [len(x) // 2] * 3
    assert bool((changed == changed[0]).all()) or randomness == "different"


def test_other_tracers_take_it(x: Tensor) -> None:
    model = chain()
    aug = ga.rewrite(model, "1")
    assert torch.equal(fx.symbolic_trace(aug.eval())(x), model.eval()(x))
    found: dict[str, Tensor] = {}
    model[3].register_forward_hook(lambda _m, _a, out: found.update(out=out))
    model(x)
    assert torch.equal(
        create_feature_extractor(aug, ["3"], suppress_diff_warning=True).eval()(x)["3"], found["out"]
    )
    for stop_grad in (False, True):  # a sparse step is taken whole
        aug = ga.rewrite(model, "1", stop_grad=stop_grad, example_inputs=x)
        assert aug.plan.backward == ("sparse" if stop_grad else "dense")
        training = fx.symbolic_trace(aug.train())
        assert any(n.target == "deep_augment" for n in training.graph.nodes)


def test_other_methods_are_named_by_the_plan_and_warn_once(x: Tensor) -> None:
    model = Methods()
    aug = ga.rewrite(model, "first")
    assert "run the model without augmentation: encode, embed\n" in f"{aug.plan}\n"
    with pytest.warns(UserWarning, match=r"Methods\.encode\(\) runs the model as it is"):
        assert torch.equal(aug.encode(x), model.encode(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aug.encode(x)
        assert aug.width() == 8
        aug.eval().embed(x)


def test_an_inner_call_of_a_method_does_not_warn(x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ga.rewrite(Methods(), "first")(x)


def test_augmentations_are_found_by_the_spelling_of_the_plan() -> None:
    from graphaug.errors import SiteNotFound

    aug = ga.rewrite(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), ["0", "1"])
    found = aug.augmentations
    for site in aug.plan.sites:
        spelled = str(site.request.target)
        assert found[spelled] is found[site.request.target] is getattr(aug, site.module)
        assert spelled in found
        assert found.get(spelled) is found[spelled]
    assert len(found) == 2
    assert "2" not in found
    assert 0 not in found
    assert found.get("2") is None
    with pytest.raises(SiteNotFound, match="not augmented at '2'"):
        found["2"]


class Dispatched(nn.Module):
    """Calls functions that torch made in a function, and that have no place by their qualified names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.max_pool2d(self.stem(x), 2)
        h, _ = nn.functional.adaptive_max_pool2d(h, 1, return_indices=True)
        return self.head(h.flatten(1))


def test_functions_that_torch_made_in_a_function_are_pickled() -> None:
    aug = ga.rewrite(Dispatched(), "stem", subset=0.0, example_inputs=torch.randn(4, 3, 12, 12))
    images = torch.randn(6, 3, 12, 12)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        assert torch.equal(twin(images), aug(images))


def test_a_graph_of_any_public_function_is_pickled() -> None:
    for functions in torch.overrides.get_overridable_functions().values():
        for function in functions:
            if torch.overrides.is_tensor_method_or_property(function):
                continue  # a graph calls it by its name
            graph = fx.Graph()
            graph.call_function(function)
            again = unpack_graph(pickle.loads(pickle.dumps(pack_graph(graph))))
            assert again is not None
            assert next(iter(again.nodes)).target == function
