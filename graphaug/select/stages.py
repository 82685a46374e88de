"""The stages of a model: its list of equal blocks, and the numbers that the paper gives them."""

from __future__ import annotations

from collections.abc import Mapping

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
    found = [
        (len(m), path)
        for path, m in model.named_modules()
        if isinstance(m, (nn.ModuleList, nn.Sequential))
        and len(m) >= 1
        and len({type(child) for child in m}) == 1
        and list(m[0].children())
        and not isinstance(m[0], CONTAINERS)
    ]
    outer = [(n, p) for n, p in found if not any(p.startswith(q + ".") for _, q in found)]
    return outer[0][1] if len(outer) == 1 else None


def paper_stages(model: nn.Module) -> Mapping[int, str]:
    """The paper's numbering of a model's sites, as selector strings; empty if unknown (docs/selection.md, Numbers).

    ResNets of torchvision and timm: -1 input, 0 stem, 1-4 ``layer1..layer4``, 5 pooled, 6 the head.
    Models with one list of blocks: 0 what enters the first block, i behind block i; ``graphaug.text``'s SimCSE also has
    its head behind the last block.
    """
    kinds = {f"{cls.__module__}.{cls.__name__}" for cls in type(model).__mro__}
    layers = {i: f"layer{i}" for i in range(1, 5)}
    if "torchvision.models.resnet.ResNet" in kinds:
        return {0: "relu", **layers, 5: "flatten", 6: "fc"}
    if "timm.models.resnet.ResNet" in kinds:
        return {0: "act1", **layers, 5: "global_pool", 6: "fc"}
    blocks = blocks_of(model)
    stages = {0: f"{blocks[0]}.input", **dict(enumerate(blocks, 1))} if blocks else {}
    if stages and "graphaug.text.simcse.SimCSE" in kinds:
        stages[len(blocks) + 1] = "head"
    return stages


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of the entries of the model's one list of equal blocks; they may have names instead of numbers."""
    path = block_list(model)
    if path is None:
        return []
    return [f"{path}.{name}".removeprefix(".") for name, _ in model.get_submodule(path).named_children()]
