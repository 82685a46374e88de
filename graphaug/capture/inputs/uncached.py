"""What turns off the caches that a model's modules fill, as advice."""

from __future__ import annotations

from torch import nn

from graphaug.capture.inputs.caches import USE_CACHE
from graphaug.capture.inputs.signature import Signature


def what_turns_off_caches(signature: Signature, model: nn.Module) -> str:
    """What turns off the caches that a model's modules fill, as a sentence after a space; "" if nothing does."""
    given = [name for name, value in signature.examples.items() if "cache" in type(value).__name__.lower()]
    if given:
        return f" Leave {given[0]!r} out of example_inputs, and pass use_cache=False."
    switches = [name for name in signature.defaults if name.startswith("use_") and "cache" in name]
    if switches:
        then = ", and in every call: without it this model returns something else" * signature.cache.differs
        return f" Pass {switches[0]}=False in example_inputs{then}."
    for entry in signature.captured:
        if entry.name.startswith("use_") and "cache" in entry.name:
            return "" if entry.default is False else f" Pass {entry.name}=False in example_inputs."
    for path, module in model.named_modules():
        if getattr(getattr(module, "config", None), USE_CACHE, False) is True:
            return f" Set {'.'.join(filter(None, ('model', path)))}.config.{USE_CACHE} = False."
    return ""
