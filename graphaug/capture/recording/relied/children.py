"""What a captured graph relies on of registries: that modules have the children that opened code saw in them.

A module that the graph calls may be exchanged, for it is called by its path; not so one whose own code the graph stands
for, one of two names of the same module, nor any where the code asks for classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from graphaug.errors import AssumptionViolated

_GONE = object()
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ITERATE = {"_modules", "children", "named_children", "modules", "named_modules"}
_ASK_FOR_CLASS = {"isinstance", "issubclass", "type", "__class__"}


@dataclass(frozen=True)
class Children:
    """What a module's registries held when opened code read them.

    Attributes:
        path: of the module.
        names: those of all its children, in their order, where the code went through them.
        same: children that have to be the very modules.
        alike: children that may be exchanged for others of their class, with that.
        modules: names of children that may be exchanged for any module.
        tensors: names of parameters and buffers.
        parameters, buffers: names of all its parameters and buffers, where the code went through them.
        attributes: names of tensors that are neither.
        empty: names that were registered with None.
        absent: names that were asked for and not registered.
    """

    path: str
    names: tuple[str, ...] | None
    same: tuple[tuple[str, nn.Module], ...] = ()
    alike: tuple[tuple[str, type], ...] = ()
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    parameters: tuple[str, ...] | None = None
    buffers: tuple[str, ...] | None = None
    attributes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def check(self, model: nn.Module) -> None:
        """Raise unless it still holds.

        Args:
            model: the captured one.

        Raises:
            AssumptionViolated: a child was added, removed or exchanged since, or a parameter set to None.
        """
        module = model
        for name in self.path.split(".") if self.path else ():
            child = module._modules.get(name)
            if child is None:
                raise _violated(self.path, "is gone")
            module = child
        if self.names is not None and tuple(module._modules) != self.names:
            raise _violated(self.path, f"has the children {', '.join(module._modules) or 'none'} now")
        for name, before in self.same:
            if module._modules.get(name) is not before:
                raise _violated(self._of(name), "was exchanged")
        for name, kind in self.alike:
            now = module._modules.get(name)
            if type(now) is not kind:
                raise _violated(self._of(name), f"was exchanged for {type(now).__name__}")
        for name in self.modules:
            if module._modules.get(name) is None:
                raise _violated(self._of(name), "was removed")
        for name in self.tensors:
            if module._parameters.get(name) is None and module._buffers.get(name) is None:
                raise _violated(self._of(name), "was removed")
        for what in ("parameters", "buffers"):
            names, held = getattr(self, what), getattr(module, f"_{what}")
            if names is not None and tuple(held) != names:
                raise _violated(self.path, f"has the {what} {', '.join(held) or 'none'} now")
        for name in self.attributes:
            if getattr(module, name, None) is None:
                raise _violated(self._of(name), "was removed")
        for name in self.empty:
            if any(r.get(name) is not None for r in (module._modules, module._parameters, module._buffers)):
                raise _violated(self._of(name), "was None, and was set")
        for name in self.absent:
            if any(name in r for r in (module._modules, module._parameters, module._buffers)):
                raise _violated(self._of(name), "was added")

    def _of(self, name: str) -> str:
        return f"{self.path}.{name}".removeprefix(".")


def _violated(path: str, how: str) -> AssumptionViolated:
    return AssumptionViolated(f"{path or 'the model'} {how} since the capture. Call rewrite again.")


class Registered:
    """What all registries of a model hold before its forward runs."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {m: path for path, m in model.named_modules()}
        self._before = {m: _entries(m) for m in self.paths}
        self._known_as = Counter(m for _, m in model.named_modules(remove_duplicate=False))

    def facts(
        self, opened: AbstractSet[str], reads: AbstractSet[tuple[int, str]], asked: AbstractSet[str]
    ) -> Iterator[Children]:
        """What opened code relies on of them.

        Args:
            opened: paths of the modules whose code ran.
            reads: the attributes that it read, with the ids of their modules.
            asked: the names in its code.
        """
        by_module: dict[int, set[str]] = {}
        for owner, name in reads:
            by_module.setdefault(owner, set()).add(name)
        for m, path in self.paths.items():
            read = by_module.get(id(m), set())
            found = self._of_module(m, path, read, opened, asked)
            if _is_swept(m, by_module, "_buffers"):
                found = replace(found, names=tuple(m._modules), buffers=tuple(m._buffers))
            if "_buffers" in read & asked:  # it says so itself
                found = replace(found, buffers=tuple(m._buffers))
            if "_parameters" in read & asked:
                found = replace(found, parameters=tuple(m._parameters))
            if _is_swept(m, by_module, "_parameters"):  # parameters() went through all of it
                kept = dict.fromkeys((*found.tensors, *m._parameters))
                own = tuple(m._parameters)
                found = replace(found, names=tuple(m._modules), tensors=tuple(kept), parameters=own)
            if found != Children(path, None):
                yield found

    def _of_module(
        self,
        m: nn.Module,
        path: str,
        read: AbstractSet[str],
        opened: AbstractSet[str],
        asked: AbstractSet[str],
    ) -> Children:
        before, now = self._before[m], _entries(m)
        # parameters() goes through all children as well, and looks at nothing else of them
        whole = "_modules" in read and (isinstance(m, CONTAINERS) or bool(asked & _ITERATE))
        seen = {*read, *m._modules} if whole else read
        found: dict[str, list[Any]] = {
            k: [] for k in ("same", "alike", "modules", "tensors", "attributes", "empty", "absent")
        }
        for name in sorted(seen):
            value = before.get(name, _GONE)
            if value is not now.get(name, _GONE):
                continue  # the forward itself sets it
            if isinstance(value, nn.Module):
                kept = f"{path}.{name}".removeprefix(".") in opened or self._known_as[value] > 1
                if kept or asked & _ASK_FOR_CLASS:
                    found["same" if kept else "alike"].append((name, value if kept else type(value)))
                else:
                    found["modules"].append(name)
            elif isinstance(value, Tensor):
                found["attributes" if name in vars(m) else "tensors"].append(name)
            elif value is None:
                found["empty"].append(name)
            elif not hasattr(m, name):
                found["absent"].append(name)
        return Children(path, tuple(m._modules) if whole else None, **{k: tuple(v) for k, v in found.items()})


def _is_swept(m: nn.Module, reads: Mapping[int, AbstractSet[str]], registry: str) -> bool:
    """Whether code went through all parameters of a module, as a regulariser does, and not to the first alone."""
    read = reads.get(id(m), set())
    return {registry, "_modules"} <= read and all(_is_swept(child, reads, registry) for child in m.children())


def _entries(m: nn.Module) -> Mapping[str, Any]:
    tensors = {name: value for name, value in vars(m).items() if isinstance(value, Tensor)}
    return {**tensors, **m._buffers, **m._parameters, **m._modules}
