"""Methods that the class of the user's model has in place of nn.Module's: the rewritten model goes to them.

A rewritten model has a class of its own, so that such methods can lie where torch looks for them. What they do for the
model is done for its augmentations, and for children that were added to the rewritten model alone, as nn.Module does.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from graphaug.surgery.rewritten.children import later

_OF_THE_MODEL = (
    *("get_extra_state", "set_extra_state", "_save_to_state_dict"),
    *("register_buffer", "register_parameter"),
)
"""What concerns the model alone."""
_FOR_ALL = (
    *(
        "_apply",
        "to",
        "type",
        "float",
        "double",
        "half",
        "bfloat16",
        "cpu",
        "cuda",
        "to_empty",
        "share_memory",
    ),
    *("requires_grad_", "zero_grad"),
)
_NAMED = ("named_parameters", "named_buffers")
_UNNAMED = ("parameters", "buffers")
_CHILDREN = ("children", "named_children")


def take_over(cls: Any, model: nn.Module) -> None:
    """Give the class of a rewritten model what the class of the user's model has of its own."""
    theirs = type(model)
    cls._version = theirs._version
    cls._is_full_backward_hook = property(
        lambda self: self._parts.model._is_full_backward_hook,
        lambda self, value: setattr(self._parts.model, "_is_full_backward_hook", value),
    )
    # what Python looks up on the class: `aug[0]`, `len(aug)`, `with aug:`
    for name in dir(theirs):
        operator = inspect.getattr_static(theirs, name)
        is_special = name.startswith("__") and name.endswith("__") and not hasattr(cls, name)
        if is_special and isinstance(operator, types.FunctionType):
            setattr(cls, name, _of_the_model(name))
    makers: dict[str, Callable[[str], Callable[..., Any]]] = {
        **dict.fromkeys(_OF_THE_MODEL, _of_the_model),
        **dict.fromkeys(_FOR_ALL, _for_all),
        **dict.fromkeys(_NAMED, _named),
        **dict.fromkeys(_UNNAMED, _unnamed),
        **dict.fromkeys(_CHILDREN, _children),
        "eval": lambda _: _eval,
        "_load_from_state_dict": lambda _: _load_from_state_dict,
        "state_dict": lambda _: _state_dict,
        "load_state_dict": lambda _: _load_state_dict,
    }
    for name, maker in makers.items():
        if getattr(theirs, name, None) is not getattr(nn.Module, name, None):
            setattr(cls, name, maker(name))


def _rest(aug: Any) -> dict[str, nn.Module]:
    """The children that the user's model does not have."""
    return {**aug._parts.added, **later(aug)}


def apply(aug: Any, fn: Callable[[nn.Module], None]) -> Any:
    """Apply a function to every module; as the root it gets the user's model, whose class it may ask for."""
    model = aug._parts.model
    mode = model.training
    for module in (model, *_rest(aug).values()):
        module.apply(fn)
    if model.training != mode:
        aug.training = model.training
    return aug


def _of_the_model(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = self._parts.model
        result = getattr(model, name)(*args, **kwargs)
        return self if result is model else result

    return method


def _for_all(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = self._parts.model
        result = getattr(model, name)(*args, **kwargs)
        for module in _rest(self).values():
            getattr(module, name)(*args, **kwargs)
        return self if result is model else result

    return method


def _named(name: str) -> Callable[..., Any]:
    def method(
        self: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True, **kwargs: Any
    ) -> Iterator[Any]:
        # as few arguments as can be: the override may take less than nn.Module's
        given: dict[str, Any] = {"prefix": prefix} if prefix else {}
        given |= {"recurse": recurse} if not recurse else {}
        given |= {"remove_duplicate": remove_duplicate} if not remove_duplicate else {}
        yield from getattr(self._parts.model, name)(**given, **kwargs)
        for child, module in _rest(self).items() if recurse else ():
            inside = f"{prefix}.{child}".removeprefix(".")
            yield from getattr(module, name)(prefix=inside, remove_duplicate=remove_duplicate)

    return method


def _unnamed(name: str) -> Callable[..., Any]:
    def method(self: Any, recurse: bool = True) -> Iterator[Any]:
        yield from getattr(self._parts.model, name)(**({} if recurse else {"recurse": False}))
        for module in _rest(self).values() if recurse else ():
            yield from getattr(module, name)()

    return method


def _children(name: str) -> Callable[..., Any]:
    def method(self: Any) -> Iterator[Any]:
        yield from getattr(self._parts.model, name)()
        yield from _rest(self).items() if name == "named_children" else _rest(self).values()

    return method


def _load_from_state_dict(self: Any, state_dict: Any, prefix: str, *args: Any) -> None:
    unexpected: list[str] = args[3]
    known = tuple(unexpected)
    self._parts.model._load_from_state_dict(state_dict, prefix, *args)
    starts = tuple(f"{prefix}{name}." for name in _rest(self))  # of which the model does not know
    unexpected[:] = [key for key in unexpected if key in known or not key.startswith(starts)]


def _eval(self: Any) -> Any:
    self._parts.model.eval()
    for module in later(self).values():
        module.eval()
    self._set_modes(False)
    return self


def _state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
    found = self._parts.model.state_dict(*args, **kwargs)
    given = {**dict(zip(("destination", "prefix", "keep_vars"), args, strict=False)), **kwargs}
    for name, module in _rest(self).items():
        prefix = f"{given.get('prefix', '')}{name}."
        found.update(module.state_dict(prefix=prefix, keep_vars=given.get("keep_vars", False)))
    return found


def _load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
    rest = {name: module for name, module in _rest(self).items() if module.state_dict()}
    if not rest:
        return self._parts.model.load_state_dict(state_dict, *args, **kwargs)
    starts = tuple(f"{name}." for name in rest)
    model_s = state_dict.copy()  # not another kind of dict: it may have metadata
    for key in [k for k in model_s if k.startswith(starts)]:
        del model_s[key]
    result = self._parts.model.load_state_dict(model_s, *args, **kwargs)
    for name, module in rest.items():
        own = {k.removeprefix(f"{name}."): v for k, v in state_dict.items() if k.startswith(f"{name}.")}
        found = module.load_state_dict(own, *args, **kwargs)
        for where, keys in zip(result, found, strict=True):
            where += [f"{name}.{key}" for key in keys]
    return result
