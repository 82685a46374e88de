"""What other tools can do at a layer, tried: ``python -m benchmarks.compare`` writes the table of the README.

Each tool gets the same task, on a torchvision ResNet-18 and a small BERT with random weights: halve the value of two of
four rows behind a layer and stop their gradient, as a training step would. What comes out is compared with a forward
hook written by hand. A tool that is not installed is left out of the results; nothing is taken from its manual.

composer 0.32.1 asks for a torch before 2.7.1; its surgery was tried beside the torch that the results name.

pyvene 0.1.8 asks for `config = None` on a model that is none of transformers'. It switches a model's gradients off when
it takes it; `enable_model_gradients()` puts them back, and the training mode on, which is undone here. What it writes
in place into the last relu of a torchvision block is refused by autograd. Its own way to read is for models that it
lists, of which these are none, so that a function reads.
"""

from __future__ import annotations

import copy
import json
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/compare.json"
ROWS = torch.tensor([True, False, True, False])
Call = Callable[[Any], Tensor]
Use = Callable[[nn.Module, str], tuple[Any, Call]]
"""(model, layer) → what holds the change, and a call of it."""

QUESTIONS = {
    "reads": "gives the value behind a layer",
    "resnet": "changes a layer of a torchvision model, gradients included",
    "bert": "the same in a Hugging Face model",
    "operation": "reaches an operation that is no module (the addition of a residual block)",
    "bypass": "says when data flow past the layer",
    "plain": "the model itself stays as it was",
    "keys": "the same `state_dict` keys",
    "copy": "a deep copy is changed too, with weights of its own",
    "compile": "`torch.compile(fullgraph=True)`",
    "skips": "skips the backward that a stopped gradient makes needless",
}
TOOLS = {
    "graphaug": "graphaug",
    "hooks": "forward hooks",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
    "transformer_lens": "TransformerLens",
    "composer": "composer's surgery",
    "extractor": "torchvision's extractor",
}
PACKAGES = {
    "hooks": "torch",
    "composer": "mosaicml",
    "transformer_lens": "transformer-lens",
    "extractor": "torchvision",
}


def act(h: Any) -> Any:
    """The change: two rows halved, and their gradient stopped."""
    if isinstance(h, tuple):
        return (act(h[0]), *h[1:])
    rows = ROWS.view(-1, *[1] * (h.dim() - 1))
    return torch.where(rows, (0.5 * h).detach(), h)


def resnet() -> tuple[nn.Module, Any]:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).eval(), torch.randn(4, 3, 32, 32)


def bert() -> tuple[nn.Module, Any]:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **sizes))
    return model.eval(), torch.randint(50, (4, 7))


def output(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


# --- the tools: each puts the change behind a layer, in its own documented way ----------------------


def plain(model: nn.Module, x: Any) -> Tensor:
    return output(model(x))


def with_hooks(model: nn.Module, path: str) -> tuple[Any, Call]:
    model.get_submodule(path).register_forward_hook(lambda _, __, h: act(h))
    return model, lambda x: output(model(x))


def with_graphaug(model: nn.Module, path: str) -> tuple[Any, Call]:
    import graphaug as ga

    _, x = resnet() if hasattr(model, "fc") else bert()
    aug = ga.rewrite(model, path, stop_grad=True, rate=0.5, backward="dense", example_inputs=x)
    for augmentation in aug.augmentations.values():  # its own draws would differ from those of the others
        augmentation.train().forward = act  # and it acts in eval mode, as the others do
    return aug, lambda x: output(aug(x))


def with_graphaug_training(model: nn.Module, path: str) -> tuple[Any, Call]:
    """As it is used: with its own draws, in training mode."""
    import graphaug as ga

    aug = ga.rewrite(model, path, stop_grad=True, example_inputs=bert()[1]).train()
    return aug, lambda x: output(aug(x))


def with_nnsight(model: nn.Module, path: str) -> tuple[Any, Call]:
    import nnsight

    wrapped = nnsight.NNsight(model)

    def call(x: Any) -> Tensor:
        with wrapped.trace(x):
            if path == "layer4.1.add":  # what the relu behind it is given
                wrapped.layer4[1].source.self_relu_1.input = act(wrapped.layer4[1].source.self_relu_1.input)
            else:
                layer = wrapped.get(path)
                layer.output = act(layer.output)
            found = wrapped.output.save()
        return output(found)

    return wrapped, call


def with_pyvene(model: nn.Module, path: str) -> tuple[Any, Call]:
    return _pyvene(model, path, lambda base, *_, **__: act(base))


def _pyvene(model: nn.Module, path: str, intervention: Callable[..., Tensor]) -> tuple[Any, Call]:
    import pyvene

    if not hasattr(model, "config"):
        model.config = None  # type: ignore[assignment]
    training = model.training
    component = re.sub(r"\.(\d+)", r"[\1]", path) + ".output"
    found = pyvene.IntervenableModel({"component": component, "intervention": intervention}, model=model)
    found.enable_model_gradients()
    model.train(training)
    return found, lambda x: call_pyvene(found, x)


def call_pyvene(found: Any, x: Any) -> Tensor:
    return output(found({"x" if x.is_floating_point() else "input_ids": x})[1])


def with_transformer_lens(model: nn.Module, path: str) -> tuple[Any, Call]:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:  # without a network a folder stands for the hub
        model.save_pretrained(folder)  # type: ignore[operator]
        bridge = TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=words())
    name = f"blocks.{path.rsplit('.', 1)[-1]}.hook_out"

    def call(x: Any) -> Tensor:
        return output(bridge.run_with_hooks(x, fwd_hooks=[(name, lambda h, hook: act(h))]))

    return bridge, call


def words() -> Any:
    """A tokenizer of 50 words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    known = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{f"w{i}": i for i in range(4, 50)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


class Acting(nn.Sequential):
    """A module and the change behind it."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return act(self[0](*args, **options))


def with_composer(model: nn.Module, path: str) -> tuple[Any, Call]:
    from composer.utils import module_surgery

    module = model.get_submodule(path)
    policy = {type(module): lambda found, _: Acting(found) if found is module else None}
    module_surgery.replace_module_classes(model, policy)
    return model, lambda x: output(model(x))


def with_extractor(model: nn.Module, path: str) -> tuple[Any, Call]:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(model, {path: "value"})
    extractor(torch.randn(4, 3, 32, 32))["value"]  # read; there is no way given to write
    raise NotImplementedError("reads values, and has no way to change them")


USES: Mapping[str, Use] = {
    "graphaug": with_graphaug,
    "hooks": with_hooks,
    "nnsight": with_nnsight,
    "pyvene": with_pyvene,
    "transformer_lens": with_transformer_lens,
    "composer": with_composer,
    "extractor": with_extractor,
}


PER_CALL = (with_nnsight, with_transformer_lens)
"""What is given the change with every call, and holds none."""


def read_graphaug(model: nn.Module, path: str, x: Any) -> Tensor:
    import graphaug as ga

    found: Tensor = ga.tap(model, path)(x)[path]
    return found


def read_hooks(model: nn.Module, path: str, x: Any) -> Tensor:
    seen: list[Tensor] = []
    model.get_submodule(path).register_forward_hook(lambda _, __, h: seen.append(output(h)))
    model(x)
    return seen[0]


def read_nnsight(model: nn.Module, path: str, x: Any) -> Tensor:
    import nnsight

    wrapped = nnsight.NNsight(model)
    with wrapped.trace(x):
        found = wrapped.get(path).output.save()
    return output(found)


def read_pyvene(model: nn.Module, path: str, x: Any) -> Tensor:
    seen: list[Tensor] = []

    def keep(base: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(base.clone())
        return base

    _pyvene(model, path, keep)[1](x)
    return seen[0]


def read_transformer_lens(model: nn.Module, path: str, x: Any) -> Tensor:
    bridge, _ = with_transformer_lens(model, path)
    found: Tensor = bridge.run_with_cache(x)[1][f"blocks.{path.rsplit('.', 1)[-1]}.hook_out"]
    return found


def read_extractor(model: nn.Module, path: str, x: Any) -> Tensor:
    from torchvision.models.feature_extraction import create_feature_extractor

    found: Tensor = create_feature_extractor(model, {path: "value"})(x)["value"]
    return found


READS: Mapping[str, Callable[[nn.Module, str, Any], Tensor]] = {
    "graphaug": read_graphaug,
    "hooks": read_hooks,
    "nnsight": read_nnsight,
    "pyvene": read_pyvene,
    "transformer_lens": read_transformer_lens,
    "extractor": read_extractor,
}


def reads(tool: str) -> str:
    """Whether the value is the one that a hook sees, in the first of the two models that the tool takes."""
    if tool not in READS:
        return "no: has no way to"
    make, path = (bert, "bert.encoder.layer.1") if tool == "transformer_lens" else (resnet, "layer4")
    model, x = make()
    wanted = read_hooks(make()[0], path, x)
    found = READS[tool](model, path, x)
    return (
        "yes"
        if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-6)
        else "no: not as it is"
    )


# --- the questions -----------------------------------------------------------------------------------


class Edited(nn.Module):
    """A residual block of torchvision whose addition is changed, written out by hand."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        return b.relu(act(b.bn2(b.conv2(b.relu(b.bn1(b.conv1(x))))) + x))


def expected(make: Callable[[], tuple[nn.Module, Any]], path: str) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of the first weight, by a hook or a block written by hand."""
    model, x = make()
    if path == "layer4.1.add":
        model.layer4[1] = Edited(model.layer4[1])
    else:
        with_hooks(model, path)
    return result(model, lambda x: output(model(x)), x)


def result(model: nn.Module, call: Call, x: Any) -> tuple[Tensor, Tensor]:
    found = call(x)
    found.square().sum().backward()
    return found.detach(), next(p for p in model.parameters() if p.grad is not None).grad.clone()  # type: ignore[union-attr]


def changes(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    model, x = make()
    _, call = use(model, path)
    for name, one, other in zip(
        ("output", "gradient"), result(model, call, x), expected(make, path), strict=True
    ):
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-6):
            return f"no: another {name}"
    return "yes"


def says_bypass(use: Use, path: str) -> str:
    model, x = resnet()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            _, call = use(model, path)
            call(x)
        except Exception as error:
            return "yes" if "receives" in str(error) else f"no: {type(error).__name__}"
    return "yes" if any("bypass" in str(w.message) for w in said) else "no: silent"


def stays_plain(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    model, x = make()
    before = output(model(x))
    _, call = use(model, path)
    call(x)
    model.eval()
    return "yes" if torch.equal(output(model(x)), before) else "no"


def same_keys(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    model, _ = make()
    before = list(model.state_dict())
    holder, _ = use(model, path)
    return "yes" if list(holder.state_dict()) == before else "no"


def copied(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    model, x = make()
    holder, call = use(model, path)
    if use in PER_CALL:
        return "–: the change belongs to the call"
    other = copy.deepcopy(holder)
    if {id(p) for p in other.parameters()} & {id(p) for p in holder.parameters()}:
        return "no: shares weights"
    again = call_pyvene(other, x) if use is with_pyvene else output(other(x))
    return "yes" if torch.allclose(again, call(x)) else "no"


def compiles(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    model, x = make()
    _, call = use(model, path)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    compiled(x).square().sum().backward()
    return "yes"


def skips(use: Use, make: Callable[[], tuple[nn.Module, Any]], path: str) -> str:
    """By torch's own counter of FLOPs, forward and backward of a step against the unchanged model's."""
    step = with_graphaug_training if use is with_graphaug else use
    flops = []
    for changed in (False, True):
        model, x = make()
        model.train()
        call = step(model, path)[1] if changed else partial(plain, model)
        call(x)
        with FlopCounterMode(display=False) as counter:
            call(x).square().sum().backward()
        flops.append(counter.get_total_flops())
    return "yes" if flops[1] < 0.95 * flops[0] else "no"


def attempt(check: Callable[..., str], *args: Any) -> str:
    try:
        return check(*args)
    except Exception as error:
        said = str(error).strip() or "-"
        return f"no: {type(error).__name__}: {said.splitlines()[0][:100]}"


def ask(tool: str) -> dict[str, str]:
    """The answers of a tool; what depends on a change asks of the model in which the change works."""
    use = USES[tool]
    found = {
        "reads": attempt(reads, tool),
        "resnet": attempt(changes, use, resnet, "layer4"),
        "bert": attempt(changes, use, bert, "bert.encoder.layer.1"),
        "operation": attempt(changes, use, resnet, "layer4.1.add"),
    }
    works = [(resnet, "layer4")] if found["resnet"] == "yes" else []
    works += [(bert, "bert.encoder.layer.1")] if found["bert"] == "yes" else []
    rest = {"plain": stays_plain, "keys": same_keys, "copy": copied, "compile": compiles, "skips": skips}
    if not works:
        return {**found, **dict.fromkeys(["bypass", *rest], "–: it changes neither")}
    found["bypass"] = (
        attempt(says_bypass, use, "layer4.1.conv2") if works[0][0] is resnet else "–: not that model"
    )
    for name, check in rest.items():
        if name == "skips" and len(works) == 2:  # rows of the BERT are independent, which a saving needs
            found[name] = attempt(check, use, *works[1])
        else:
            found[name] = attempt(check, use, *works[0])
    return found


def table(record: Mapping[str, Any]) -> str:
    """The answers as Markdown: yes, no, or – where the question does not arise."""
    tools = list(record["answers"])
    lines = [
        "| | " + " | ".join(f"{TOOLS[t]} {record['versions'][t]}" for t in tools) + " |",
        "|---|" + "---|" * len(tools),
    ]
    for name, question in QUESTIONS.items():
        words = [record["answers"][tool][name].split(":")[0] for tool in tools]
        lines.append(f"| {question} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    answers, versions = {}, {}
    warnings.simplefilter("ignore")
    for tool in TOOLS:
        try:
            versions[tool] = version(PACKAGES.get(tool, tool))
        except PackageNotFoundError:
            if tool != "graphaug":
                print(f"{tool} is not installed", file=sys.stderr)
                continue
            import graphaug

            versions[tool] = graphaug.__version__
        answers[tool] = ask(tool)
        print(tool, json.dumps(answers[tool], indent=1), file=sys.stderr)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": versions,
        "answers": answers,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
