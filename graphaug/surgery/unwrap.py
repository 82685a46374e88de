"""The user's own model behind whatever was handed in."""

from __future__ import annotations

from torch import nn

from graphaug.errors import UnsupportedModel, an
from graphaug.surgery.module import AugmentedModule


def plain_model(model: object) -> nn.Module:
    """Return the user's own model behind ``model``.

    Raises:
        UnsupportedModel: it is wrapped for data parallelism, compiled, scripted, has no forward, or is no module.
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
        raise UnsupportedModel(f"graphaug takes an nn.Module, and this is {what}{_class_hint(model)}.")
    if not _has_forward(model):
        raise UnsupportedModel(f"{type(model).__name__} has no forward: {_instead(model)}.")
    return model


def _has_forward(module: nn.Module) -> bool:
    return getattr(module.forward, "__func__", module.forward) is not nn.Module.forward


def _instead(model: nn.Module) -> str:
    """What to rewrite of a module that is never called itself, as many a LightningModule and every ModuleList."""
    names = [name for name, child in model.named_children() if _has_forward(child)]
    if not names:
        return "give a module that is called"
    more = ", …" if len(names) > 5 else ""
    return f"rewrite a module in it that is called ({', '.join(names[:5])}{more}), and put the result in its place"


def _class_hint(model: object) -> str:
    return f" {model.__name__}: make an instance of it" if isinstance(model, type) else ""


def unwrap_hint(aug: object) -> str:
    """What to do if a module was given and a rewritten one inside it was meant; or nothing."""
    inner = getattr(aug, "_orig_mod", None) or getattr(aug, "module", None)
    if isinstance(inner, AugmentedModule):
        return " Give it the module inside the wrapper."
    inside = aug.named_modules() if isinstance(aug, nn.Module) else ()
    paths = [repr(path) for path, module in inside if isinstance(module, AugmentedModule)]
    return f" Give it what was rewritten in it: {', '.join(paths)}." if paths else ""
