"""Which names of opened code are global variables: attributes, methods and variables of closures are none."""

import dis
import types

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.recording.relied.code_names import globals_in, names_in
from graphaug.errors import AssumptionViolated

loss, head, size = "a result", "another", 2
gains = {"p": 1.0}
here = types.ModuleType("settings")
here.scale = 2.0


def norm(h: Tensor) -> Tensor:
    """A function with the name of an attribute, which reads what the model does not."""
    return h * gains["p"]


class Net(nn.Module):
    """Attributes and methods with the names of global variables; ``here.scale`` and ``size`` are read as such."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.head, self.norm = nn.Linear(4, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(torch.relu(self.enc(x))) * here.scale
        self.last_size = next(h * size for _ in range(1))
        logits = self.head(h)
        return logits, self.loss(logits, y)


@pytest.fixture(scope="module")
def rewritten():
    example = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    return ga.rewrite(Net(), at="enc", example_inputs=example).train(), example


@pytest.mark.parametrize("name", ["loss", "head"])
def test_a_global_with_the_name_of_an_attribute_may_change(rewritten, name, monkeypatch):
    aug, example = rewritten
    monkeypatch.setitem(globals(), name, torch.ones(()))
    aug(*example)
    monkeypatch.delitem(globals(), name)
    aug(*example)


def test_what_a_function_with_the_name_of_an_attribute_reads_may_change(rewritten, monkeypatch):
    aug, example = rewritten
    monkeypatch.setitem(gains, "p", 2.0)
    aug(*example)


@pytest.mark.parametrize(
    ("holder", "name", "said"), [(here, "scale", r"here\.scale"), (None, "size", "the global 'size'")]
)
def test_what_is_read_as_a_global_may_not(rewritten, holder, name, said, monkeypatch):
    aug, example = rewritten
    monkeypatch.setitem(globals() if holder is None else vars(holder), name, 5)
    with pytest.raises(AssumptionViolated, match=said):
        aug(*example)


def test_globals_are_told_by_their_instructions():
    def code(self, x):
        inner = [first for _ in x if second]  # noqa: F821
        later = lambda: third.attribute(fourth=fifth)  # noqa: E731, F821
        self.set = x.method(self.read, inner, later)
        seen.append(x)  # noqa: F821
        del self.gone

    assert globals_in(code.__code__) == {"first", "second", "third", "fifth"}
    assert names_in(code.__code__) == {
        "first",
        "second",
        "third",
        "fifth",
        "attribute",
        "method",
        "read",
        "append",
    }
    within = compile("class C:\n    a = one\n    def f(self): return self.two(three)", "f", "exec")
    assert {"one", "three"} <= globals_in(within)
    assert "two" not in globals_in(within)
    assert any(step.opname == "LOAD_NAME" for step in dis.get_instructions(within.co_consts[0]))
