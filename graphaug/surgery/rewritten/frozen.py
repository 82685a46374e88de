"""What a freeze acts on in a model as it stands now, whatever was put into its frozen region since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from graphaug.surgery.freeze import Frozen, keeps_statistics


@dataclass
class FrozenRegion:
    """The frozen region of a model: the places that its graph calls or reads there, and what was frozen in them.

    Attributes:
        places: paths of modules that are called, and of parameters that opened code reads.
        held: each frozen parameter as the module that has it and its name there: modules stay what they are where
            parameters become others, as by sharding, by a parametrization or as a state is loaded.
        acts: whether the parameters were frozen and are not thawed.
        keeps_statistics: whether modules with batch statistics were set to eval mode last.
    """

    places: tuple[str, ...]
    held: tuple[tuple[nn.Module, str], ...]
    acts: bool = False
    keeps_statistics: bool = False

    @classmethod
    def of(cls, graph: fx.Graph, frozen: Frozen | None, model: nn.Module) -> FrozenRegion | None:
        """The region that a freeze marked in a graph; nothing is frozen yet."""
        if frozen is None:
            return None
        nodes = [n for n in graph.nodes if n.meta.get("frozen") and not n.meta.get("augmentation")]
        places = dict.fromkeys(str(n.target) for n in nodes if n.op in ("call_module", "get_attr"))
        names = [name.rpartition(".") for name in frozen.parameters]
        return cls(tuple(places), tuple((model.get_submodule(path), name) for path, _, name in names))

    def freeze(self) -> None:
        """Freeze what was trainable in the region."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.acts = True

    def thaw(self) -> None:
        """Make trainable again what was frozen and is still there."""
        for parameter in self.parameters():
            if parameter.is_floating_point() or parameter.is_complex():  # it may have been quantized since
                parameter.requires_grad_(True)
        self.acts = False

    def parameters(self) -> list[nn.Parameter]:
        """The frozen parameters as they are now, of which some may be gone."""
        return [p for module, name in self.held for p in _as_now(module, name)]

    def count(self, model: nn.Module) -> int:
        """How many of the frozen parameters are still in the model, in whatever parts."""
        there = {id(p) for p in model.parameters()}
        return sum(any(id(p) in there for p in _as_now(module, name)) for module, name in self.held)

    def trainable(self, model: nn.Module) -> list[str]:
        """The names of parameters in the region that are trained: none were when it was frozen."""
        if not self.acts:
            return []
        found = [n for n, p in self._read(model) if p.requires_grad]
        for path, module in self._modules(model):
            own = module._parameters.items()
            found += [f"{path}.{n}" for n, p in own if p is not None and p.requires_grad]
        return list(dict.fromkeys(found))

    def norms(self, model: nn.Module) -> list[nn.Module]:
        """The modules in the region that keep batch statistics."""
        return [module for _, module in self._modules(model) if keeps_statistics(module)]

    def following(self, model: nn.Module) -> list[str]:
        """The paths of modules in the region whose batch statistics follow the batches, though they were to be kept."""
        if not self.keeps_statistics:
            return []
        return [path for path, module in self._modules(model) if module.training and keeps_statistics(module)]

    def _modules(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        seen: set[nn.Module] = set()
        for place in self.places:
            path, _, name = place.rpartition(".")
            module = (_module_at(model, path) or nn.Module())._modules.get(name)
            if module is not None:
                yield from nn.Module.named_modules(module, seen, place)

    def _read(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for place in self.places:
            path, _, name = place.rpartition(".")
            owner = _module_at(model, path)
            if owner is not None and owner._modules.get(name) is None:
                yield from ((place, parameter) for parameter in _as_now(owner, name))


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = model
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found


def _as_now(module: nn.Module, name: str) -> list[nn.Parameter]:
    """What a parameter of a module is now: itself, or what torch made of it and keeps by another name."""
    parametrized = _module_at(module, f"parametrizations.{name}")
    if parametrized is not None:
        return [p for p in parametrized._parameters.values() if p is not None]
    # pruning, and spectral_norm before it was a parametrization, add "_orig"
    own = (module._parameters.get(n) for n in (name, f"{name}_orig"))
    return [p for p in own if p is not None][:1]
