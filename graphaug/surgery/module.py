"""The rewritten model: a GraphModule that shares everything with the user's model and copies nothing."""

from __future__ import annotations

import contextlib
import copy
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, fx, nn

from graphaug.augment.drawn import Drawn
from graphaug.augment.site import Augmentation
from graphaug.capture.names import CONSTANTS
from graphaug.capture.recording.facts import Fact, check_facts
from graphaug.capture.signature import Signature
from graphaug.errors import AssumptionViolated
from graphaug.surgery.aliases import ALIAS, at_path, speakable
from graphaug.surgery.augmentations import Augmentations
from graphaug.surgery.methods import watched
from graphaug.surgery.packing import pack_graph, unpack_graph
from graphaug.surgery.plan import Plan
from graphaug.surgery.settings import BySite, given, settings
from graphaug.torch_private import function_from_source

# The registries of the root that the rewritten model and the user's model have in common.
_SHARED = (
    "_parameters", "_buffers", "_non_persistent_buffers_set",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Constants(nn.Module):
    """What opened code refers to and no module owns: tensors as non-persistent buffers, other objects as they are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in values.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                self.__dict__[name] = value  # not a child, even if it is a module


class Steps(Protocol):
    """A training forward in several graphs instead of one; a sparse backward is made of these."""

    def graphs(self) -> Mapping[str, fx.Graph]:
        """The graphs by name; each becomes a method ``_forward_<name>`` of the rewritten model."""

    def with_graphs(self, change: Callable[[fx.Graph], Any]) -> Any:
        """The same steps with every graph changed: packed, or unpacked again."""

    def run(self, owner: Any, values: dict[str, Any]) -> Any:
        """One training forward of the rewritten model, from its inputs by name."""


@dataclass
class Parts:
    """All that a rewritten model consists of, in a form that can be copied and pickled."""

    model: nn.Module
    training_graph: fx.Graph
    eval_graph: fx.Graph | None
    added: dict[str, nn.Module]
    signature: Signature
    plan: Plan
    split: Steps | None = None
    warned: set[str] = field(default_factory=set)
    facts: Mapping[bool, tuple[Fact, ...]] = field(default_factory=dict)
    """What the graphs of training (True) and eval mode rely on besides their inputs."""
    runs_original: bool = False
    """Whether a call in eval mode that the graph was not captured for runs the original model."""
    row_dims: Mapping[str, int] = field(default_factory=dict)
    """The dimension of samples of the inputs that are tensors and have one, as far as it is known."""


class AugmentedModule(fx.GraphModule):
    """A model with Deep Augmentation in its graph; made by `graphaug.rewrite`.

    It is a view of the user's model: children, parameters, buffers and hooks are the same objects,
    and attributes that it lacks are looked up on the model.

    Examples:
        >>> import torch, graphaug as ga
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), at="0", rate=0.5)
        >>> aug.set_rate(0.25)
        >>> aug.augmentations["0"].rate.item()
        0.25
        >>> type(aug.original).__name__
        'Sequential'
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name=f"Augmented{type(parts.model).__name__}")
        model = parts.model
        self.__dict__["_parts"] = parts
        self.__dict__["_aliases"] = {}
        for name in _SHARED:
            self.__dict__[name] = model.__dict__[name]
        self._modules.update(model._modules)
        self._modules.update(parts.added)
        self.training = model.training
        self.__dict__["_own"] = frozenset()
        # past nn.Module.__setattr__, which takes it for a child where the model has one called graph
        fx.GraphModule.graph.fset(self, speakable(parts.training_graph, AugmentedModule, self._aliases))  # type: ignore[attr-defined]
        self._set_modes(self.training)
        self.__dict__["_own"] = frozenset(self.__dict__)

    # --- calling ------------------------------------------------------------------------------

    def recompile(self) -> Any:
        """Generate the forward again after the graph was edited."""
        code = super().recompile()
        parts = self.__dict__.get("_parts")
        if parts is None:  # GraphModule.__init__ compiles its empty graph first
            return code
        cls: Any = type(self)
        cls._forward_training = cls.forward
        cls._forward_eval = cls.forward
        if parts.eval_graph is not None:
            cls._forward_eval = _compiled(parts.eval_graph, self._aliases)
        if parts.split is not None:
            for name, graph in parts.split.graphs().items():
                setattr(cls, f"_forward_{name}", _compiled(graph, self._aliases))

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self._parts.runs_original and not self.training and not isinstance(args, fx.Proxy):
                try:
                    return graph_forward(self, args, kwargs)
                except AssumptionViolated:  # whatever the model accepts: here it is the model
                    return self._parts.model.forward(*args, **kwargs)
            return graph_forward(self, args, kwargs)

        def graph_forward(self: Any, args: Any, kwargs: Any) -> Any:
            if isinstance(args, fx.Proxy):  # a second tracing: its inputs are named by their places
                values = self._parts.signature.take(args, kwargs)
            else:
                instead = self._parts.runs_original and not self.training
                values = self._parts.signature.bind(args, kwargs, to_the_letter=instead)
                check_facts(self._parts.model, self._parts.facts.get(self.training, ()))
            if self.training:
                split = self._parts.split
                return self._forward_training(**values) if split is None else split.run(self, values)
            return self._forward_eval(**values)

        seen = parts.signature.python_signature()
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        # a code object of its own: torch.compile counts recompilations by it, and many models may be compiled
        forward = types.FunctionType(
            forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__
        )
        forward.__signature__ = seen.replace(parameters=[first, *seen.parameters.values()])  # type: ignore[attr-defined]
        cls.forward = forward
        return code

    def train(self, mode: bool = True) -> AugmentedModule:
        """Set training mode; frozen modules with batch statistics stay in eval mode."""
        self._parts.model.train(mode)  # the model may override it, as backbones with frozen norms do
        for module in self._later().values():
            module.train(mode)
        self._set_modes(mode)
        return self

    def _set_modes(self, mode: bool) -> None:
        self.training = mode
        for module in self._parts.added.values():
            module.train(mode)
        freeze = self._parts.plan.freeze
        if freeze is not None and self._keeps_statistics:
            for path in freeze.modules:
                self.get_submodule(path).eval()

    def _later(self) -> dict[str, nn.Module]:
        """Children that were added to the rewritten model itself."""
        known = {*self._parts.model._modules, *self._parts.added}
        return {name: m for name, m in self._modules.items() if m is not None and name not in known}

    @property
    def _keeps_statistics(self) -> bool:
        return bool(self.__dict__.get("_frozen_statistics", True))

    def keep_frozen_statistics(self, keep: bool = True) -> None:
        """Whether BatchNorms in a frozen region keep their running statistics in training (the default)."""
        self.__dict__["_frozen_statistics"] = keep
        self.train(self.training)

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Run the whole backward in this block, as with ``backward="dense"``."""
        split, self._parts.split = self._parts.split, None
        try:
            yield
        finally:
            self._parts.split = split

    @contextlib.contextmanager
    def only_the_graph(self) -> Iterator[None]:
        """Run one captured graph in this block, whole backward and all, and never the original in its place.

        A call that the graph was not captured for raises `AssumptionViolated` also in eval mode.
        """
        before, self._parts.runs_original = self._parts.runs_original, False
        try:
            with self.dense():
                yield
        finally:
            self._parts.runs_original = before

    # --- what was done ------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What was done to the model and why."""
        plan: Plan = self._parts.plan
        return plan

    @property
    def original(self) -> nn.Module:
        """The user's model, which this one shares everything with."""
        model: nn.Module = self._parts.model
        return model

    @property
    def augmentations(self) -> Augmentations:
        """The augmentation at every site; a key is spelled as in the plan: ``aug.augmentations["layer4"]``."""
        named = {site.module: site.request.target for site in self.plan.sites}
        return Augmentations({target: self._parts.added[name] for name, target in named.items()})

    def set(self, site: str | None = None, /, **numbers: float) -> None:
        """Change numbers of a site's transform, or its ``subset``, in place: ``aug.set("layer4", sigma=0.1)``.

        Nothing is recompiled but, by a new subset, a sparse step or a transform whose rows meet.

        Args:
            site: spelled as in ``aug.plan``; None: every site that has such numbers.
            numbers: the values by name.

        Raises:
            InvalidOption: the site, or no site, has such a number, or a value is outside its domain.
            SiteNotFound: the model is not augmented there.
        """
        for name, value in numbers.items():  # all are checked before one is changed
            settings(self._by_site, name, value if site is None else {site: value})
        for name, value in numbers.items():
            for augmentation, number in settings(
                self._by_site, name, value if site is None else {site: value}
            ):
                augmentation.set(**{name: number})

    def set_rate(self, rate: float | Mapping[str, float]) -> None:
        """Change the dropout probability of all sites, or of those named; nothing is recompiled.

        Args:
            rate: one probability, or site -> probability with sites spelled as in ``aug.plan``.

        Raises:
            InvalidOption: outside [0, 1], or a site that has no rate.
            SiteNotFound: the model is not augmented there.
        """
        for augmentation, value in settings(self._by_site, "rate", rate):
            augmentation.set(rate=value)

    def set_subset(self, subset: float | Mapping[str, float]) -> None:
        """Change the share of augmented rows, as `set_rate` the rate; what is recompiled `set` says."""
        for augmentation, value in settings(self._by_site, "subset", subset):
            augmentation.set(subset=value)

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        """What every site drew in the last forward in training mode, compiled or not: ``aug.drawn["layer4"].rows``.

        Looked up when it is read: `SiteNotFound` for another site, `BatchError` before the first forward.
        """
        return BySite(self._by_site, lambda augmentation: augmentation.drawn)

    def given(self, **context: Tensor | None) -> contextlib.AbstractContextManager[None]:
        """Hand in what transforms need to know of the batch, in this block: ``with aug.given(labels=y): aug(x)``.

        Args:
            context: ``labels`` (B,), integers; ``mask`` (B, T) of real tokens; ``source``, the activation of another
                input, with B rows or one; ``generator``, not compiled.

        Raises:
            InvalidOption: something else.
        """
        return given(self._by_site, context)

    @property
    def _by_site(self) -> dict[str, Augmentation]:
        return self.augmentations.spelled()

    # --- being the model ----------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith(ALIAS):
            return at_path(self, self.__dict__["_aliases"][name])
        try:
            return super().__getattr__(name)
        except AttributeError:
            parts = self.__dict__.get("_parts")
            if parts is None or name.startswith("__"):
                raise
            value = getattr(parts.model, name)
            if isinstance(value, types.MethodType) and name not in parts.warned:
                return watched(value, parts.model, lambda: self.training, parts.warned)
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        parts = self.__dict__.get("_parts")
        if parts is not None and name in parts.model._modules:
            setattr(parts.model, name, value)  # a new head is a new head for both

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child, or exchange one; a child of the model is exchanged there as well."""
        if name in self._modules:  # its name may be one that this class has an attribute of
            self._modules[name] = module
        else:
            super().add_module(name, module)
        if name in self._parts.model._modules:
            self._parts.model._modules[name] = module

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path; a child comes before an attribute of this class that has its name."""
        first, _, rest = target.partition(".")
        child = self._modules.get(first)
        return super().get_submodule(target) if child is None else child.get_submodule(rest)

    def _extra(self) -> dict[str, Any]:
        """Attributes that were set on the rewritten model itself, after it was made."""
        return {k: v for k, v in self.__dict__.items() if k not in self._own}

    def __deepcopy__(self, memo: dict[int, Any]) -> AugmentedModule:
        return _rebuild(copy.deepcopy(_packed(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (_packed(self),)


def _compiled(graph: fx.Graph, aliases: dict[str, list[str]]) -> Any:
    """The function of a graph, with the model as its ``self``."""
    code = speakable(graph, AugmentedModule, aliases).python_code(root_module="self")
    return function_from_source(code.src, code.globals)


def _packed(aug: AugmentedModule) -> dict[str, Any]:
    parts = aug._parts
    return {
        "model": parts.model,
        "training_graph": pack_graph(parts.training_graph),
        "eval_graph": pack_graph(parts.eval_graph),
        "added": parts.added,
        "signature": parts.signature,
        "plan": parts.plan,
        "split": None if parts.split is None else parts.split.with_graphs(pack_graph),
        "facts": parts.facts,
        "runs_original": parts.runs_original,
        "row_dims": parts.row_dims,
        "extra": aug._extra(),
        "later": aug._later(),
    }


def _rebuild(packed: dict[str, Any]) -> AugmentedModule:
    graph = unpack_graph(packed["training_graph"])
    assert graph is not None
    model, added = packed["model"], packed["added"]
    modes = {m: m.training for m in [model, *model.modules(), *added.values()]}
    aug = AugmentedModule(
        Parts(
            model,
            graph,
            unpack_graph(packed["eval_graph"]),
            added,
            packed["signature"],
            packed["plan"],
            None if packed["split"] is None else packed["split"].with_graphs(unpack_graph),
            facts=packed["facts"],
            runs_original=packed["runs_original"],
            row_dims=packed["row_dims"],
        )
    )
    aug.__dict__.update(packed["extra"])
    aug._modules.update(packed["later"])
    for module, mode in modes.items():
        module.training = mode
    return aug


def constants_module(values: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The child that holds a graph's constants, or nothing if it has none."""
    return {CONSTANTS: Constants(values)} if values else {}
