"""The stages of a model: its list of equal blocks, and the numbers that the paper gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_block_list(module: nn.Module) -> bool:
    """A container with two or more children of one class that have children themselves."""
    if not isinstance(module, CONTAINERS):
        return False
    kinds = [type(child) for child in module.children() if list(child.children())]
    return len(kinds) >= 2 and len(set(kinds)) < len(kinds) and not issubclass(kinds[0], nn.ModuleList)


def block_list(model: nn.Module) -> str | None:
    """Path of the model's one list of equal blocks (a transformer's), or None if there is no such list."""
    outer = _block_lists(model)
    return outer[0] if len(outer) == 1 else None


def _block_lists(model: nn.Module) -> list[str]:
    """Paths of the lists of equal blocks that lie in no other one."""
    found = [
        path
        for path, m in model.named_modules()
        if isinstance(m, (nn.ModuleList, nn.Sequential))
        and len(m) >= 1
        and len({type(child) for child in m}) == 1
        and m[0] is not None  # what is turned off may stand in a list as None
        and list(m[0].children())
        and not isinstance(m[0], CONTAINERS)
    ]
    return [path for path in found if not any(is_inside(path, other) for other in found)]


def is_inside(path: str, other: str) -> bool:
    """Whether one path lies below another one, the model's own path ``""`` included."""
    return path != other and (not other or path.startswith(other + "."))


RESNETS = {
    "torchvision.models.resnet.ResNet": ("relu", "flatten"),
    "timm.models.resnet.ResNet": ("act1", "global_pool"),
}
"""ResNets by the qualified name of their class: what the stem ends with, and what gives the pooled vector."""

RESNET_BLOCKS = ("torchvision.models.resnet", "timm.models.resnet", "lightly.models.resnet")
"""Where the blocks come from of which four lists in one ``nn.Sequential`` are a ResNet, as in lightly's examples."""

HEADED = "graphaug.text.simcse.SimCSE"
"""What has a numbered site behind its blocks, called ``head``."""

SHARED = "transformers.models.albert.modeling_albert.AlbertTransformer"
"""What calls each block of its list several times in one pass, ``config`` says how often."""


@dataclass(frozen=True)
class Network:
    """The network in a model that the paper's numbers are about.

    Attributes:
        path: where it is, ``""`` if it is the model.
        parts: of a ResNet, what ends its stem, its four layers, what gives its pooled vector, and its head, as far as
            they are there; empty for a list of blocks.
        blocks: path of each entry of the list of blocks.
        head: path of the numbered site behind them, if there is one.
    """

    path: str
    parts: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    head: str | None = None

    def stages(self, calls: Sequence[str] | None = None) -> dict[int, str]:
        """The numbers and the selectors that they stand for.

        Args:
            calls: the blocks in the order in which they run, ``@0`` and so on where one runs several times; by
                default each once, as they are defined.
        """
        if self.parts:
            return {i: _join(self.path, name) for i, name in enumerate(self.parts)}
        calls = self.blocks if calls is None else calls
        if not calls:
            return {}
        stages = {0: f"{calls[0]}.input", **dict(enumerate(calls, 1))}
        return stages if self.head is None else {**stages, len(calls) + 1: self.head}


def find_network(model: nn.Module) -> Network | str:
    """The one network in a model, itself or inside of wrappers, that has numbers; or why there is none.

    Two networks with numbers in one model (a student and its teacher, a backbone and a decoder) have none together:
    which of them is meant would be a guess.
    """
    known: dict[str, Network] = {}
    for path, module in model.named_modules():
        if any(is_inside(path, other) for other in known):
            continue
        kinds = {f"{cls.__module__}.{cls.__name__}" for cls in type(module).__mro__}
        for kind in kinds & RESNETS.keys():
            stem, pooled = RESNETS[kind]
            known[path] = Network(path, (stem, *(f"layer{i}" for i in range(1, 5)), pooled, "fc"))
        if parts := _cut_resnet(module):
            known[path] = Network(path, parts)
        if HEADED in kinds and (blocks := blocks_of(module)):
            inner = tuple(_join(path, block) for block in blocks)
            known[path] = Network(path, blocks=inner, head=_join(path, "head"))
    lists = [p for p in _block_lists(model) if not any(p == n or is_inside(p, n) for n in known)]
    if len(known) == 1 and not lists:
        return next(iter(known.values()))
    if not known and len(lists) == 1:
        return Network("", blocks=tuple(blocks_of(model)))
    several = [*known, *lists]
    if not known or len(several) < 2:
        return ""
    return f"it holds several networks: {', '.join(map(repr, several[:4]))}{' and more' if len(several) > 4 else ''}"


def _cut_resnet(module: nn.Module) -> tuple[str, ...]:
    """The parts of a ResNet whose children stand in one ``nn.Sequential``, with or without its last ones; or nothing.

    Its layers are four neighbours that hold blocks of a known ResNet each. The stem ends in front of the pooling that
    follows it, as in the whole network.
    """
    if not isinstance(module, nn.Sequential):
        return ()
    children = list(module.named_children())
    layers = [place for place, (_, child) in enumerate(children) if _holds_resnet_blocks(child)]
    if len(layers) != 4 or layers[-1] - layers[0] != 3 or layers[0] == 0:
        return ()
    ahead = [name for name, child in children[: layers[0]] if not isinstance(child, _POOLING)]
    pooled = []
    for name, child in children[layers[-1] + 1 :]:
        if not isinstance(child, (*_POOLING, nn.Flatten)):
            break
        pooled.append(name)
    return (*ahead[-1:], *(children[place][0] for place in layers), *pooled[-1:]) if ahead else ()


_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def _holds_resnet_blocks(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and {type(child).__module__ for child in module} <= {*RESNET_BLOCKS}
        and len(module) > 0
    )


def paper_stages(model: nn.Module) -> Mapping[int, str]:
    """The paper's numbering of a model's sites, as selector strings; empty if unknown (docs/selection.md, Numbers).

    ResNets of torchvision and timm: -1 input, 0 stem, 1-4 ``layer1..layer4``, 5 pooled, 6 the head; the first of these
    also where their children stand in an ``nn.Sequential``.
    Models with one list of blocks: 0 what enters the first block, i behind block i; ``graphaug.text``'s SimCSE also has
    its head behind the last block. They may lie inside of wrappers.

    This is read off the modules alone, and takes each block to run once, ALBERT's apart. `ModelStructure.stages` knows
    from a capture how often each runs.
    """
    network = find_network(model)
    if isinstance(network, str):
        return {}
    for module in model.modules():
        if SHARED in {f"{cls.__module__}.{cls.__name__}" for cls in type(module).__mro__}:
            return network.stages(_albert_calls(network.blocks, module.config))
    return network.stages()


def _albert_calls(blocks: Sequence[str], config: Any) -> list[str]:
    """ALBERT's groups in the order of its layers: layer i is of group ``i * groups // layers``."""
    layers, groups = int(config.num_hidden_layers), int(config.num_hidden_groups)
    order = [blocks[int(i / (layers / groups))] for i in range(layers)]
    return numbered_calls(order)


def numbered_calls(order: Sequence[str]) -> list[str]:
    """The paths of blocks as they run, each with the number of its call where it runs several times."""
    seen: Counter[str] = Counter()
    total = Counter(order)
    calls = []
    for path in order:
        calls.append(f"{path}@{seen[path]}" if total[path] > 1 else path)
        seen[path] += 1
    return calls


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of the entries of the model's one list of equal blocks; they may have names instead of numbers."""
    path = block_list(model)
    if path is None:
        return []
    return [_join(path, name) for name, _ in model.get_submodule(path).named_children()]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
