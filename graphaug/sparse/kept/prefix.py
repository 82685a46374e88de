"""The modules of a prefix as they were when its rows were proved independent, and what of them has changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.jit import ScriptModule

from graphaug.capture.recording.hooks import hooks_of_every_module
from graphaug.capture.state import unchanged
from graphaug.select.model_structure import ancestors
from graphaug.sparse.kept.described import ModuleSeen, kind_of_tensor
from graphaug.sparse.kept.modes import asked_by, asks_for_mode, asks_of_others
from graphaug.sparse.kept.reach import Packed, Reach


class Kept:
    """What the modules of a prefix were when their rows were proved independent.

    Args:
        model: the model, in which the modules stand at their paths.
        modules: path, module and the mode that it was proved in, training or not.
        tensors: paths of the parameters and buffers that opened code before the cut uses.
        lost: what has changed already, as a clause.
        packed: what their code reached, of a copy; see `Reach`.
        hooks: whether hooks on its modules count.
        modes: whether modes count.

    Attributes:
        plan: the plan of the model while it is run dense because something has changed, to be put back; else None.
        warned: whether that was said.
        modes: set by `graphaug.verify`, which puts the prefix in eval mode for a comparison.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Iterable[tuple[str, nn.Module, bool]],
        tensors: Iterable[str] = (),
        lost: str = "",
        packed: Iterable[Packed] | None = None,
        hooks: bool = True,
        modes: bool = True,
    ) -> None:
        self.lost, self.warned, self.modes, self.hooks = lost, False, modes, hooks
        self.plan: Any = None
        modules = list(modules)
        self.model, self.tensors = model, tuple(tensors)
        self.places = _Places(model, {path: m for path, m, _ in modules}, self.tensors) if not lost else None
        unlike = {id(m): (path, m, training) for path, m, training in modules}
        self.reached = Reach({path: m for path, m, _ in unlike.values()}, packed)
        self.seen = [
            (path, m, ModuleSeen(m, self.reached.strings), training) for path, m, training in unlike.values()
        ]
        # a scripted class has none that could be read, or exchanged
        kinds = {type(m) for _, m, _ in unlike.values() if not isinstance(m, ScriptModule)}
        self.forwards = {kind: kind.forward for kind in kinds}
        self.everywhere = hooks_of_every_module()
        everybody = [m for _, m, _ in unlike.values()]
        others = {type(m): asks_of_others(type(m)) for m in everybody}
        by_functions = asked_by(self.reached.functions, self.forwards)
        reading = [m for m in everybody if "requires_grad" in others[type(m)] | by_functions]
        self.trained = list({p: p.requires_grad for m in reading for p in m.parameters()}.items())
        reading = [m for m in everybody if "training" in others[type(m)]]
        self.asked = {id(inner) for m in reading for inner in m.modules() if inner is not m}
        itself = {kind for kind in self.forwards if "training" in by_functions or asks_for_mode(kind)}
        self.asked.update(id(m) for m in everybody if type(m) in itself)

    @classmethod
    def in_training(cls, model: nn.Module, modules: Iterable[tuple[str, nn.Module]], **options: Any) -> Kept:
        """Of modules whose rows were proved independent in training mode, whatever mode the model is in now."""
        with unchanged(model, tensors=False):
            model.train()
            return cls(model, [(path, m, m.training) for path, m in modules], **options)

    def changed(self) -> str:
        """What has changed, as a clause; an empty string if nothing has.

        That is a module at the place of another; a child, hook, method or plain attribute; a hook of every module; and
        what their code reaches by a name: functions, options in containers and objects, class attributes, globals.

        Eval mode is one where a module's own code asks for its mode, torch's own aside, unless it asks for the grad
        mode in it. Sharding's own hooks and marks are none, nor is gradient checkpointing.
        """
        return self._edited() or self._in_another_mode()

    def _edited(self) -> str:
        if self.lost:
            return self.lost
        if self.places is not None and (exchanged := self.places.changed()):
            return exchanged
        others = any(kind.forward is not forward for kind, forward in self.forwards.items())
        for path, module, seen, _ in self.seen:
            if (others or not seen.is_as_it_was()) and (part := seen.changed(hooks=self.hooks)):
                return f"{type(module).__name__} '{path}' has another {part}"
        if hooks_of_every_module() != self.everywhere:
            return "a hook of every module was registered or removed"
        if any(p.requires_grad != was for p, was in self.trained):
            return "the prefix asks whether parameters are trained, and that was changed"
        return self.reached.changed()

    def _in_another_mode(self) -> str:
        for path, module, _, training in self.seen if self.modes else ():
            if module.training != training and (module.training or id(module) in self.asked):
                mode = "training" if module.training else "eval"
                return f"{type(module).__name__} '{path}' is in {mode} mode"
        return ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        modules = [(path, copy.deepcopy(m, memo), mode) for path, m, _, mode in self.seen]
        return Kept(copy.deepcopy(self.model, memo), modules, *self._noted())

    def __reduce__(self) -> tuple[Any, ...]:
        modules = [(path, m, mode) for path, m, _, mode in self.seen]
        return Kept, (self.model, modules, *self._noted())

    def _noted(self) -> tuple[Any, ...]:
        """What a copy takes over beside the model and the modules."""
        return self.tensors, self._edited(), self.reached.packed(), self.hooks, self.modes


class _Places:
    """What stood at each place that the graph names: it runs whatever stands there.

    The modules around are opened, and of them nothing else is asked here; what closed ones hold they are asked about.
    """

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module], tensors: Iterable[str]) -> None:
        called = [path for path in modules if path.rpartition(".")[0] not in modules]
        paths = dict.fromkeys(p for path in (*called, *tensors) for p in (*ancestors(path), path) if p)
        split = [(p, *p.rpartition(".")[::2]) for p in paths if p not in tensors]
        self.modules = [(model.get_submodule(at), name, p, model.get_submodule(p)) for p, at, name in split]
        split = [(p, *p.rpartition(".")[::2]) for p in tensors]
        self.tensors = [(m := model.get_submodule(at), name, p, _kind(m, name)) for p, at, name in split]

    def changed(self) -> str:
        """The first place at which something else stands, as a clause."""
        for holder, name, path, module in self.modules:
            if holder._modules.get(name) is not module and getattr(holder, name, None) is not module:
                return f"'{path}' is another module"
        return next(
            (f"'{p}' has another shape" for m, name, p, kind in self.tensors if _kind(m, name) != kind), ""
        )


def _kind(module: nn.Module, name: str) -> Any:
    """What kind of tensor a module has by a name; one that it computes itself is none that is asked about."""
    held = vars(module)
    return kind_of_tensor(held["_parameters"].get(name, held["_buffers"].get(name)))
