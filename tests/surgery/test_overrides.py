"""Methods that the class of the user's model has in place of nn.Module's. Oracle: the plain model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import UnsupportedModel

pytestmark = pytest.mark.few(6)


class Net(nn.Module):
    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).to(self.b.weight.dtype)) * self.factor


class ExtraState(Net):
    state: Any = None

    def get_extra_state(self) -> Any:
        return {"v": 1}

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Saves(Net):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "own"] = torch.ones(1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "own", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class StateDict(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        del found[prefix + "b.bias"]
        return found

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class Version(Net):
    _version = 3


class Casts(Net):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.b.float()
        return self


class To(Net):
    def to(self, *args: Any, **kwargs: Any) -> Any:
        super().to(*args, **kwargs)
        self.b.float()
        return self

    def double(self) -> Any:
        return self.to(torch.float64)


class Eval(Net):
    def eval(self) -> Any:
        self.factor = 7.0
        return super().eval()


class Parameters(Net):
    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return ((n, p) for n, p in super().named_parameters(*args, **kwargs) if not n.startswith("a"))


class Freezes(Net):
    zeroed = False

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        super().requires_grad_(requires_grad)
        self.a.requires_grad_(False)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.zeroed = True
        super().zero_grad(set_to_none)


ALL = (ExtraState, Saves, StateDict, Version, Casts, To, Eval, Parameters, Freezes)


def pair(cls: type[nn.Module]) -> tuple[Any, Any, Any, Tensor]:
    torch.manual_seed(0)
    model, x = cls(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    return model, ga.rewrite(model, at="a", rate=0.0, stop_grad=False, example_inputs=x), plain, x


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_states(cls: type[nn.Module], nested: bool, later: bool) -> None:
    model, aug, plain, x = pair(cls)
    found, expected = (nn.Sequential(m) if nested else m for m in (aug, plain))
    if later:
        aug.projector = nn.Linear(8, 2)
    state, wanted = found.state_dict(), expected.state_dict()
    own = [key for key in state if "projector" not in key]
    assert own == list(wanted)
    assert len(state) == len(own) + 2 * later
    name = "0" if nested else ""
    assert state._metadata[name] == wanted._metadata[name]
    changed = {k: v * 2 if isinstance(v, Tensor) else v for k, v in state.items()}
    strict = cls is not StateDict or not nested  # else a key is missing in the plain model as well
    found.load_state_dict(changed, strict=strict)
    expected.load_state_dict({k: v for k, v in changed.items() if "projector" not in k}, strict=strict)
    torch.testing.assert_close(aug.eval()(x), plain.eval()(x))
    assert getattr(model, "state", None) == getattr(plain, "state", None)
    if later:
        torch.testing.assert_close(aug.projector.bias, changed["0." * nested + "projector.bias"])


@pytest.mark.parametrize("cls", ALL)
def test_methods(cls: type[nn.Module]) -> None:
    _, aug, plain, x = pair(cls)
    for m in (aug, plain):
        assert m.double() is m
        assert m.requires_grad_(True) is m
        assert m.eval() is m
        m.zero_grad()
    assert aug.b.weight.dtype == plain.b.weight.dtype
    assert [n for n, _ in aug.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert len(list(aug.parameters())) == len(list(plain.parameters()))
    assert [p.requires_grad for p in aug.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert getattr(aug, "zeroed", None) == getattr(plain, "zeroed", None)
    for mode in (False, True)[
        : 1 if cls is Eval else 2
    ]:  # which sets what the graph of training has as it was
        torch.testing.assert_close(aug.train(mode)(x.double()), plain.train(mode)(x.double()))


TAKEN = (
    "code",
    "plan",
    "graph",
    "set",
    "drawn",
    "dense",
    "original",
    "meta",
    "_graph",
    "_code",
    "_parts",
    "_registry",
    "_own",
)


class Named(nn.Module):
    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.a, self.called = nn.Linear(8, 8), name
        if kind == "module":
            self.add_module(name, nn.Linear(8, 8))
        elif kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.rand(8)))
        else:
            self.__dict__[name] = 2.5 if kind == "float" else torch.rand(8)

    def forward(self, x: Tensor) -> Tensor:
        value = getattr(self, self.called)
        return value(self.a(x)) if isinstance(value, nn.Module) else self.a(x) * value


@pytest.mark.parametrize("kind", ["module", "parameter", "float", "tensor"])
@pytest.mark.parametrize("name", TAKEN)
def test_names_that_the_rewritten_model_has_itself(name: str, kind: str) -> None:
    _, aug, plain, x = pair(lambda: Named(name, kind))  # type: ignore[arg-type]
    for m in (aug, copy.deepcopy(aug)):
        for mode in (True, False):
            torch.testing.assert_close(m.train(mode)(x), plain.train(mode)(x))
    assert list(aug.state_dict()) == list(plain.state_dict())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_children_of_torch_script(kind: str) -> None:
    x, child = torch.randn(4, 8), nn.Linear(8, 8)
    scripted = torch.jit.script(child) if kind == "scripted" else torch.jit.trace(child, torch.randn(4, 8))
    model = nn.Sequential(nn.Linear(8, 8), scripted, nn.Linear(8, 8))
    expected = model(x)
    aug = ga.rewrite(model, at="0", rate=0.0, example_inputs=x)
    for mode in (True, False):
        torch.testing.assert_close(aug.train(mode)(x), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_traced_by_torch_jit() -> None:
    _, aug, plain, x = pair(Net)
    traced = torch.jit.trace(aug.eval(), x)
    for rows in (4, 6):
        y = torch.randn(rows, *x.shape[1:])
        torch.testing.assert_close(traced(y), plain.eval()(y))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_an_augmentation_is_not_traced_by_torch_jit(backward: str) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 8)
    aug = ga.rewrite(model, "1", stop_grad=True, backward=backward, example_inputs=x).train()
    with pytest.raises(UnsupportedModel, match=r"call aug\.eval\(\) before tracing"):
        torch.jit.trace(aug, x)
    tapped = ga.tap(model, "1", example_inputs=x).train()  # nothing acts there
    torch.testing.assert_close(torch.jit.trace(tapped, x, strict=False)(x)["1"], model[:2](x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_rewritten_model_is_not_scripted_and_the_plain_one_is() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 8)
    aug = ga.rewrite(model, "1", example_inputs=x).eval()
    for asked in (aug, nn.Sequential(aug, nn.ReLU())):
        with pytest.raises(UnsupportedModel, match=r"torch\.jit\.script .* graphaug\.strip\(aug\)"):
            torch.jit.script(asked)
    torch.testing.assert_close(torch.jit.script(ga.strip(aug))(x), model(x))
