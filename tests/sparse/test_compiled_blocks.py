"""Regional compilation: repeated blocks that are compiled alone, before the model is rewritten or after."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.testing import CompileCounter

import graphaug as ga


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stem(nn.Module):
    """What the first block gets is no view, as what the others get is none: a compiler tells them apart."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 7)

    def forward(self, x):
        return torch.tanh(self.linear(x))


def step(aug, call, x, tenths):
    """Output and gradients of one step of ``aug``, called by ``call``, with so many tenths of the rows stopped."""
    aug.set_subset(tenths / 10)
    aug.zero_grad()
    torch.manual_seed(tenths)
    output = call(x)
    output.square().sum().backward()
    return [output, *(p.grad for p in aug.parameters())]


@pytest.mark.parametrize("moment", ["before rewriting", "after it"])
def test_every_subset_takes_the_same_two_graphs(moment):
    torch.manual_seed(0)
    model = nn.Sequential(Stem(), *(Block(7) for _ in range(5)), nn.Linear(7, 3))
    # two sizes that the rows never have: a compiler takes what is equal for the same symbol
    x = torch.randn(20, 3, 5)
    options = {"at": "4", "rate": 0.5, "stop_grad": True, "example_inputs": x}
    plain = ga.rewrite(copy.deepcopy(model), **options)
    counter = CompileCounter()
    torch._dynamo.reset()

    def compile_blocks():
        for block in model[1:6]:
            block.compile(backend=counter, dynamic=True)

    if moment == "before rewriting":
        compile_blocks()
    aug = ga.rewrite(model, **options)
    if moment != "before rewriting":
        compile_blocks()
    assert aug.plan.backward == plain.plan.backward == "sparse"
    made = 0
    for tenths in range(1, 10):
        torch.testing.assert_close(step(aug, aug, x, tenths), step(plain, plain, x, tenths))
        made = counter.frame_count if tenths == 1 else made
    assert aug.plan.backward == "sparse"
    assert counter.frame_count == made, "another subset compiled something"
    if moment == "after it":
        assert made == 2, "one with gradients, one for the rows that are stopped"


class Region(Block):
    forward = torch.compiler.nested_compile_region(Block.forward)


# the block at the cut has a backward of its own
@pytest.mark.filterwarnings("ignore:invoke_subgraph traced multiple backward graphs")
def test_a_block_that_is_a_region_stands_in_the_graph_once_with_gradients_and_once_without():
    torch.manual_seed(0)
    model = nn.Sequential(Stem(), *(Region(7) for _ in range(7)), nn.Linear(7, 3))
    x = torch.randn(20, 3, 5)
    options = {"at": "5", "rate": 0.5, "stop_grad": True, "example_inputs": x}
    aug = ga.rewrite(model, **options)
    plain = ga.rewrite(copy.deepcopy(model), **options)
    assert aug.plan.backward == "sparse"
    calls = []

    def backend(graph, examples):
        calls.append([
            str(node.args[1])
            for node in graph.graph.nodes
            if node.target is torch.ops.higher_order.invoke_subgraph
        ])  # fmt: skip
        return aot_eager(graph, examples)

    torch._dynamo.reset()
    compiled = torch.compile(aug, fullgraph=True, backend=backend)
    for tenths in (3, 5, 8):
        torch.testing.assert_close(step(aug, compiled, x, tenths), step(plain, plain, x, tenths))
    assert len(calls) == 3, "each number of rows once"
    for names in calls:
        # five of the prefix, for either part of the rows, and the two behind the site for all of them
        assert len(names) == 12
        assert len(set(names)) == 3


FIRST = """
import gc
import torch
from torch import nn
import graphaug as ga
from graphaug.capture.recording import patches

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)
    def forward(self, x):
        return self.body(x).relu()

def asks(x):
    return x * 2 if torch.is_grad_enabled() and torch.numel(x) > 0 else x

x = torch.randn(4, 8)
model = nn.Sequential(Block(), Block(), nn.Linear(8, 2))
compiled = {compiled}
aug = ga.rewrite(compiled, at={at!r}, stop_grad=True, example_inputs=x)
torch.testing.assert_close(aug.eval()(x), model.eval()(x))
gc.collect()
assert not [g for g in patches._BEHIND if g.__module__ == patches.__name__], "something keeps a replacement"
print(torch.equal(torch.compile(asks, fullgraph=True, backend="eager")(x), asks(x)))
"""
COMPILED = {
    "in place": ("[block.compile(backend='eager') for block in model[:2]] and model", "1"),
    "as children": (
        "nn.Sequential(*(torch.compile(block, backend='eager') for block in model[:2]), model[2])",
        "1",
    ),
    "in a block": ("model[0].body.compile(backend='eager') or model", "0.body"),
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_rewrite_may_be_the_first_to_call_what_is_compiled(how):
    """The compiler makes its tables of torch's functions when it first compiles: not while they are replaced."""
    code, at = COMPILED[how]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST.format(compiled=code, at=at)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.stdout.strip() == "True", ended.stderr[-2000:]
