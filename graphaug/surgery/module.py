"""The rewritten model: a GraphModule that shares everything with the user's model and copies nothing."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from graphaug.augment.choices import check_flag
from graphaug.augment.drawn import Drawn
from graphaug.augment.site import Augmentation
from graphaug.capture.regions import sets_grad_mode
from graphaug.capture.target import Target
from graphaug.surgery.by_site import Augmentations, BySite, at_site, given, set_numbers
from graphaug.surgery.methods import watched
from graphaug.surgery.plan import Plan
from graphaug.surgery.rewritten.aliases import INTERNAL, at_alias, speakable
from graphaug.surgery.rewritten.blocks import in_blocks
from graphaug.surgery.rewritten.children import add_child, agree, child_of, is_of_the_model, later
from graphaug.surgery.rewritten.forward import compiled, forward_of, not_scriptable
from graphaug.surgery.rewritten.overrides import apply, take_over
from graphaug.surgery.rewritten.packing import blank, fill, packed, shared
from graphaug.surgery.rewritten.parts import Parts

# The registries of the root that the rewritten model and the user's model have in common.
_SHARED = (
    "_parameters", "_buffers", "_non_persistent_buffers_set",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


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
        self.__dict__["_modules"].update({**model._modules, **parts.added})
        self.__dict__["_agreed"] = dict(model._modules)
        take_over(type(self), model)
        self.__dict__.update(training=model.training, _own=frozenset())
        # past nn.Module.__setattr__, which takes it for a child where the model has one called graph
        fx.GraphModule.graph.fset(self, speakable(parts.training_graph, AugmentedModule, self._aliases))  # type: ignore[attr-defined]
        self._set_modes(self.training)
        self.__dict__["_own"] = frozenset(self.__dict__)

    # --- calling ------------------------------------------------------------------------------

    def recompile(self) -> Any:
        """Generate the forward again after the graph was edited."""
        with in_blocks(self.graph):
            code = super().recompile()
        parts = self.__dict__.get("_parts")
        if parts is None:  # GraphModule.__init__ compiles its empty graph first
            return code
        if self.__dict__["_own"]:  # somebody edited the graph, and wants that and not the original
            parts.runs_original = False
        cls: Any = type(self)
        cls._forward_training = cls._forward_eval = cls.forward
        if parts.eval_graph is not None:
            cls._forward_eval = compiled(parts.eval_graph, AugmentedModule, self._aliases)
        if parts.split is not None:
            for name, graph in parts.split.graphs().items():
                setattr(cls, f"_forward_{name}", compiled(graph, AugmentedModule, self._aliases))
        parts.sets_grad_mode = any(sets_grad_mode(g) for g in (self.graph, parts.eval_graph) if g is not None)
        cls.forward = forward_of(parts.signature, parts.model)
        return code

    def train(self, mode: bool = True) -> AugmentedModule:
        """Set training mode; frozen modules with batch statistics stay in eval mode."""
        self._parts.model.train(mode)  # the model may override it, as backbones with frozen norms do
        for module in later(self).values():
            module.train(mode)
        self._set_modes(mode)
        return self

    def _set_modes(self, mode: bool) -> None:
        self.__dict__["training"] = mode  # the model's own train may leave it in another
        for module in self._parts.added.values():
            module.train(mode)
        frozen = self._parts.frozen
        if frozen is not None:
            frozen.keeps_statistics = self._keeps_statistics
            for norm in frozen.norms(self._parts.model) if self._keeps_statistics else ():
                norm.eval()

    @property
    def _keeps_statistics(self) -> bool:
        return bool(self.__dict__.get("_frozen_statistics", True))

    def keep_frozen_statistics(self, keep: bool = True) -> None:
        """Whether BatchNorms in a frozen region keep their running statistics in training (the default)."""
        self.__dict__["_frozen_statistics"] = check_flag("keep", keep)
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
        """What was done to the model and why; its text also has what was set, or is trained in a frozen part, since."""
        if self.training and self._parts.split is not None:
            self._parts.split.look_again(self._parts)
        plan: Plan = self._parts.plan
        sites = self.augmentations.items()
        numbers = {t: a.numbers() for t, a in sites if isinstance(a, Augmentation)}
        return plan.at_present(numbers, self._parts.trained_in_frozen())

    @property
    def original(self) -> nn.Module:
        """The user's model, which this one shares everything with."""
        model: nn.Module = self._parts.model
        return model

    @property
    def augmentations(self) -> Augmentations:
        """The augmentation at every site; a key is spelled as in the plan: ``aug.augmentations["layer4"]``."""
        named = {site.module: site.request.target for site in self._parts.plan.sites}
        return Augmentations({target: self._parts.added[name] for name, target in named.items()})

    def set(self, site: Target | str | None = None, /, **numbers: float) -> None:
        """Change numbers of a site's transform, or its ``subset``, in place: ``aug.set("layer4", sigma=0.1)``.

        Nothing is recompiled but, by a new subset, a sparse step or a transform whose rows meet.

        Args:
            site: spelled as in ``aug.plan``, or a `Target`; None: every site that has such numbers.
            numbers: the values by name.

        Raises:
            InvalidOption: the site, or no site, has such a number, or a value is outside its domain.
            SiteNotFound: the model is not augmented there.
        """
        set_numbers(self._by_site, numbers if site is None else at_site(site, numbers))

    def set_rate(self, rate: float | Mapping[str, float]) -> None:
        """Change the dropout probability of all sites, or of those named; nothing is recompiled.

        Args:
            rate: one probability, or site -> probability with sites spelled as in ``aug.plan``.

        Raises:
            InvalidOption: outside [0, 1], or a site that has no rate.
            SiteNotFound: the model is not augmented there.
        """
        set_numbers(self._by_site, {"rate": rate})

    def set_subset(self, subset: float | Mapping[str, float]) -> None:
        """Change the share of augmented rows, as `set_rate` the rate; what is recompiled `set` says."""
        set_numbers(self._by_site, {"subset": subset})

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        """What every site drew in the last forward in training mode, compiled or not: ``aug.drawn["layer4"].rows``.

        Looked up when it is read: `SiteNotFound` for another site, `BatchError` before the first forward, once the mode
        was changed since, and after one inside of a transform of ``torch.func``.
        """
        return BySite(self._by_site, lambda augmentation: augmentation.drawn)

    def given(self, **context: Tensor | None) -> contextlib.AbstractContextManager[None]:
        """Hand in what transforms need to know of the batch, in this block: ``with aug.given(labels=y): aug(x)``.

        Args:
            context: ``labels`` (B,), integers; ``mask`` (B, T) of real tokens; ``source``, the activation of another
                input, with B rows or one; ``generator``, of what a transform draws, not compiled: which rows are
                augmented, and the units of `rewrite`'s own dropout, are drawn by torch's.

        Raises:
            InvalidOption: something else.
        """
        return given(self._by_site, context)

    @property
    def _by_site(self) -> dict[str, Augmentation]:
        return self.augmentations.spelled()

    # --- being the model ----------------------------------------------------------------------

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        """The children: those of the model, as they are there now, and what was added."""
        return agree(self) if "_agreed" in self.__dict__ else self.__dict__["_registry"]

    @_modules.setter
    def _modules(self, value: dict[str, nn.Module | None]) -> None:
        # torch's own look-ups want the one; by the other name it is found past the property, also while torch 2.11
        # compiles, which takes an entry of __dict__ for the attribute
        self.__dict__["_modules"] = self.__dict__["_registry"] = value

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("_parts")
        if parts is not None and name in self.__dict__["_aliases"]:
            return at_alias(self, name)
        if parts is not None and name in parts.model._modules:
            return child_of(self, name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            if parts is None or name.startswith("__"):
                raise
            value = getattr(parts.model, name)
            of_model = isinstance(value, types.MethodType) and value.__self__ is parts.model
            if of_model and name not in parts.warned:
                return watched(value, parts.model, lambda: self.training, parts.warned)
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        of_model = is_of_the_model(self, name, value)
        internal = name in INTERNAL and (name.startswith("_") or not of_model)
        if internal and not isinstance(value, (nn.Module, Tensor)):
            object.__setattr__(self, name, value)  # the model may have a child of that name
            if name == "training" and "_parts" in self.__dict__:  # by itself, as trainers put modes back
                self._parts.model.training = value
        elif of_model:
            setattr(self._parts.model, name, value)  # a new head is a new head for both
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if is_of_the_model(self, name):
            delattr(self._parts.model, name)
            agree(self)
        else:
            super().__delattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path; a child comes before an attribute of this class that has its name."""
        first, _, rest = target.partition(".")
        child = self._modules.get(first)
        return super().get_submodule(target) if child is None else child.get_submodule(rest)

    __prepare_scriptable__ = not_scriptable

    def __copy__(self) -> AugmentedModule:
        return shared(AugmentedModule, self)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> AugmentedModule:
        twin: AugmentedModule = blank(AugmentedModule)
        memo[id(self)] = twin  # what it holds may hold it
        fill(twin, copy.deepcopy(packed(self), memo))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return blank, (AugmentedModule,), packed(self)

    __setstate__ = fill
    apply = apply
    add_module = add_child

    def _replicate_for_data_parallel(self) -> fx.GraphModule:
        replica = fx.GraphModule.__copy__(self)  # whose parameters are set apart from the model's
        object.__setattr__(replica, "_is_replica", True)
        return replica
