"""What opened code is told by weights, helpers and inputs that are no tensors: another answer is noticed."""

import copy
import dataclasses
import enum
import fractions

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError


class Size(enum.Enum):
    SMALL, LARGE = 1, 2


class Level(enum.IntEnum):
    LOW, HIGH = 1, 2


@dataclasses.dataclass
class Options:
    scale: float = 2.0
    on: bool = True
    never_read: str = "a"


class Result:
    def __init__(self, h: Tensor, small: bool) -> None:
        self.h, self.small = h, small


class Net(nn.Module):
    """Multiplies by what ``read`` makes of the module, the input and another one."""

    def __init__(self, read) -> None:
        super().__init__()
        self.a, self.b, self.read = nn.Linear(8, 8), nn.Linear(8, 8), read
        self.prompt = nn.Parameter(torch.ones(4, 8))

    def forward(self, x: Tensor, other=None) -> Tensor:
        h = self.a(x)
        return self.b(h * self.read(self, x, h, other))


def compared(net: nn.Module, aug: nn.Module, *inputs) -> bool:
    """Whether a training step was taken, as the model takes it; in eval mode it always is."""
    want, taken = net(*inputs), False
    try:
        found = aug.train()(*inputs)
    except AssumptionViolated:
        pass
    else:
        taken = True
        assert found.dtype == want.dtype
        assert torch.equal(found, want)
    assert torch.equal(aug.eval()(*inputs), want)
    return taken


# --- weights ------------------------------------------------------------------------------------


def longer(m: nn.Module) -> None:
    m.prompt = nn.Parameter(torch.ones(7, 8))


def halved(m: nn.Module) -> None:
    m.to(torch.bfloat16)


def own_dtype(m: nn.Module) -> torch.dtype:
    return next(m.parameters()).dtype


WEIGHTS = {
    "dtype": (lambda m, x, h, o: 2 if m.b.weight.dtype == torch.float32 else 3, halved),
    "dtype of the first": (lambda m, x, h, o: 2 if own_dtype(m) == torch.float32 else 3, halved),
    "a table of dtypes": (lambda m, x, h, o: {torch.float32: 2}.get(m.b.weight.dtype, 3), halved),
    "type()": (lambda m, x, h, o: 2 if h.type() == "torch.FloatTensor" else 3, halved),
    "a size": (lambda m, x, h, o: m.prompt.shape[0], longer),
    "len": (lambda m, x, h, o: len(m.prompt), longer),
    "size()": (lambda m, x, h, o: 2 if m.prompt.size(0) > 5 else 3, longer),
    "numel": (lambda m, x, h, o: m.prompt.numel(), longer),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_a_weight_says_of_itself(kind):
    read, change = WEIGHTS[kind]
    net, x = Net(read), torch.randn(4, 8)
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=x)
    assert not [a for a in aug.plan.assumptions if "weight" in str(a) or "prompt" in str(a)]
    assert compared(net, aug, x)
    change(net)
    compared(net, aug, x.to(net.b.weight.dtype))


def test_a_dtype_that_is_handed_on_is_read_in_every_call():
    net, x = Net(lambda m, x, h, o: torch.ones(8).to(m.b.weight.dtype)), torch.randn(4, 8)
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=x)
    halved(net)
    assert compared(net, aug, x.to(torch.bfloat16))


def test_whether_an_input_is_a_parameter():
    net, x = Net(lambda m, x, h, o: 2 if isinstance(x, nn.Parameter) else 3), torch.randn(4, 8)
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=x)
    assert compared(net, aug, x)
    assert not compared(net, aug, nn.Parameter(x))


# --- results of functions -----------------------------------------------------------------------


def size_of(x: Tensor) -> Size:
    return Size.SMALL if len(x) == 4 else Size.LARGE


def mask_of(x: Tensor) -> Tensor | None:
    return None if len(x) == 4 else torch.full((8,), 3.0)


def part_of(x: Tensor) -> slice:
    return slice(0, 2 * len(x) // 4)


def range_of(x: Tensor) -> range:
    return range(len(x))


def fraction_of(x: Tensor) -> fractions.Fraction:
    return fractions.Fraction(len(x), 3)


def number_of(x: Tensor) -> np.float64:
    return np.float64(x.shape[0])


def array_of(x: Tensor) -> np.ndarray:
    return np.array([x.shape[0]])


def function_of(x: Tensor):
    return torch.relu if len(x) == 4 else torch.tanh


def lambda_of(x: Tensor):
    return (lambda h: h * 2) if len(x) == 4 else (lambda h: h * 3)


def closure_of(x: Tensor):
    k = x.shape[0]
    return lambda h: h * k


def object_of(x: Tensor) -> Result:
    return Result(x * 2, len(x) == 4)


def dtype_of(x: Tensor) -> torch.dtype:
    return torch.float32 if len(x) == 4 else torch.float64


class Closed(nn.Module):
    def forward(self, x: Tensor) -> Size:
        return size_of(x)


closed = Closed()
RESULTS = {
    "a member of an Enum": lambda m, x, h, o: 2 if size_of(x) is Size.SMALL else 3,
    "None": lambda m, x, h, o: 2 if mask_of(x) is None else mask_of(x),
    "a slice": lambda m, x, h, o: h[:, part_of(x)].sum(),
    "a range": lambda m, x, h, o: len(range_of(x)),
    "a fraction": lambda m, x, h, o: float(fraction_of(x)),
    "a number of NumPy's": lambda m, x, h, o: float(number_of(x)),
    "an array": lambda m, x, h, o: float(array_of(x)[0]),
    "a function": lambda m, x, h, o: function_of(x)(h),
    "a lambda": lambda m, x, h, o: lambda_of(x)(h),
    "a closure": lambda m, x, h, o: closure_of(x)(h),
    "an object": lambda m, x, h, o: 2 if object_of(x).small else 3,
    "a dtype": lambda m, x, h, o: 2 if dtype_of(x) == torch.float32 else 3,
    "of a closed module": lambda m, x, h, o: 2 if m.closed(x) is Size.SMALL else 3,
}


def test_an_array_of_a_helper_is_made_anew_and_what_is_read_of_it_compared():
    with pytest.raises(CaptureError, match="another batch size"):
        ga.rewrite(Net(RESULTS["an array"]), at="a", example_inputs=torch.randn(4, 8))


@pytest.mark.few(6)
@pytest.mark.parametrize("kind", [kind for kind in RESULTS if kind != "an array"])
def test_what_a_helper_returns(kind):
    net, x = Net(RESULTS[kind]), torch.randn(4, 8)
    net.closed = Closed()
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=x)
    assert compared(net, aug, x)
    compared(net, aug, torch.randn(6, 8))


# --- inputs -------------------------------------------------------------------------------------

INPUTS = {
    "a member of an Enum": (lambda m, x, h, o: 2 if o is Size.SMALL else 3, Size.SMALL, Size.LARGE),
    "a member of an IntEnum": (lambda m, x, h, o: int(o), Level.LOW, Level.HIGH),
    "a slice": (lambda m, x, h, o: h[:, o].sum(), slice(0, 2), slice(0, 4)),
    "a range": (lambda m, x, h, o: len(o), range(2), range(4)),
    "a fraction": (lambda m, x, h, o: float(o), fractions.Fraction(2), fractions.Fraction(3)),
    "float64": (lambda m, x, h, o: float(o), np.float64(2), np.float64(3)),
    "float32": (lambda m, x, h, o: float(o), np.float32(2), np.float32(3)),
    "an array": (lambda m, x, h, o: float(o[0]), np.ones(2), np.zeros(2)),
    "a function": (lambda m, x, h, o: o(h), torch.relu, torch.tanh),
    "a lambda": (lambda m, x, h, o: o(h), lambda h: h * 2, lambda h: h * 3),
    "a type": (lambda m, x, h, o: 2 if o is int else 3, int, str),
    "a module": (lambda m, x, h, o: o(h), nn.Linear(8, 8), nn.Linear(8, 8)),
    "a number of an object": (lambda m, x, h, o: o.scale, Options(), Options(scale=3.0)),
    "a switch of an object": (lambda m, x, h, o: 2 if o.on else 3, Options(), Options(on=False)),
    "all of an object": (lambda m, x, h, o: 2 if vars(o)["on"] else 3, Options(), Options(on=False)),
    "an object in a dict": (
        lambda m, x, h, o: 2 if o["a"].on else 3,
        {"a": Options()},
        {"a": Options(on=False)},
    ),
}


@pytest.mark.few(8)
@pytest.mark.parametrize("kind", INPUTS)
def test_an_input_that_is_no_tensor(kind):
    read, one, two = INPUTS[kind]
    net, x, kept = Net(read), torch.randn(4, 8), copy.deepcopy(one)
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=(x, one))
    assert isinstance(one, nn.Module | np.ndarray) or str(one) == str(kept) or callable(one)
    assert compared(net, aug, x, one)
    compared(net, aug, x, two)


def test_what_is_not_asked_of_an_object_may_change():
    net, x = Net(lambda m, x, h, o: o.scale), torch.randn(4, 8)
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=(x, Options()))
    assert compared(net, aug, x, Options(scale=5.0, on=False, never_read="b"))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_and_a_generator_are_the_calls_own(device):
    net, x = Net(lambda m, x, h, o: torch.ones(8).to(o)), torch.randn(4, 8)
    assert compared(net, ga.rewrite(net, at="a", rate=0.0, example_inputs=(x, device)), x, device)

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    net = Net(lambda m, x, h, o: torch.rand(8, generator=o))
    aug = ga.rewrite(net, at="a", rate=0.0, example_inputs=(x, generator(1)))
    for mode in (True, False):
        assert torch.equal(aug.train(mode)(x, generator(2)), net(x, generator(2)))
