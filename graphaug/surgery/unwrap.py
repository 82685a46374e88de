"""The user's own model behind whatever was handed in."""

from __future__ import annotations

from torch import nn

from graphaug.errors import UnsupportedModel, an
from graphaug.surgery.module import AugmentedModule


def plain_model(model: object) -> nn.Module:
    """Return the user's own model behind ``model``.

    Raises:
        UnsupportedModel: it is wrapped for data parallelism, compiled, scripted, or no module.
    """
    if isinstance(model, AugmentedModule):
        return model.original
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if "OptimizedModule" in kinds:
        raise UnsupportedModel(
            "this model is compiled already: rewrite first, then compile, torch.compile(graphaug.rewrite(model, ...))."
        )
    wrapper = kinds & {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
    if wrapper:
        name = wrapper.pop()
        raise UnsupportedModel(
            f"this model is wrapped in {name}: rewrite model.module first, then wrap, "
            f"{name}(graphaug.rewrite(model, ...))."
        )
    if "ScriptModule" in kinds:
        raise UnsupportedModel("this model is scripted: rewrite the Python module it was made from.")
    if not isinstance(model, nn.Module):
        what = "the class" if isinstance(model, type) else an(model)
        raise UnsupportedModel(f"graphaug rewrites an nn.Module, and this is {what}{_class_hint(model)}.")
    return model


def _class_hint(model: object) -> str:
    return f" {model.__name__}: make an instance of it" if isinstance(model, type) else ""


def unwrap_hint(aug: object) -> str:
    """What to do if a wrapper was given and what is inside it was meant; or nothing."""
    inner = getattr(aug, "_orig_mod", None) or getattr(aug, "module", None)
    return " Give it the module inside the wrapper." if isinstance(inner, AugmentedModule) else ""
