"""A live model seen through the selection language: its modules, its stages, its operations on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from graphaug.capture.capture import Captured, capture
from graphaug.capture.examples import captured_on_a_guess
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.target import Target
from graphaug.errors import CaptureError, SelectorError, an
from graphaug.select.stages import CONTAINERS, blocks_of, find_network, numbered_calls


def ancestors(path: str) -> list[str]:
    """Paths of the modules around ``path``, the model itself first."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts))]


class ModelStructure:
    """What `graphaug.select.resolve.resolve` asks of a model; captures it as far as the question needs.

    Args:
        model: the plain model.
        example_inputs: see `graphaug.rewrite`; without them the model is captured on a guess, once it has to be.
        count_flops: count each node's FLOPs while capturing with examples.
        training: the mode in which questions are answered.
        candidates: lists every site of the model, for predicates.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        count_flops: bool = False,
        training: bool = True,
        candidates: Callable[[ModelStructure], Sequence[Any]] | None = None,
    ) -> None:
        self.model = model
        self.training = training
        self._candidates = candidates
        self._given = None if example_inputs is None else Signature.of(model, example_inputs)
        self.count_flops = count_flops
        self.by_path = dict(model.named_modules())
        self._names = {id(m): path for path, m in self.by_path.items()}
        self._captured: dict[tuple[Any, ...], Captured] = {}
        self._hidden: set[str] = set()
        self.unnumbered = ""

    @cached_property
    def signature(self) -> Signature:
        """The model's inputs, with examples: those given, or the first guess that the model takes.

        Raises:
            CaptureError: none were given, and it takes no guess.
        """
        if self._given is not None:
            return self._given
        captured = captured_on_a_guess(self.model, training=self.training, count_flops=self.count_flops)
        self._captured[frozenset({""}), self.training, frozenset[Target](), frozenset[str]()] = captured
        return captured.signature

    @property
    def notes(self) -> list[str]:
        """Where the examples come from, if the user gave none, and the cache that the graph goes without."""
        guessed = self.signature.guessed
        of_guess = f"example_inputs: none given; taken from {guessed}" if guessed else ""
        return [*filter(None, [of_guess, self.signature.cache.note])]

    def with_examples(self, examples: Mapping[str, Any]) -> ModelStructure:
        """The same model with examples of other sizes, which come from where these do."""
        other = ModelStructure(self.model)
        other._given = dataclasses.replace(self.signature, examples=dict(examples))
        return other

    @property
    def name(self) -> str:
        """Class of the model, for messages; with the mode where a message may be about that."""
        return type(self.model).__name__ + ("" if self.training else " in eval mode")

    @property
    def modules(self) -> Mapping[str, tuple[str, ...]]:
        """Path -> class names along the MRO."""
        found: dict[str, tuple[str, ...]] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            mro = type(module).__mro__
            found[path] = tuple(cls.__name__ for cls in mro[: mro.index(nn.Module)])
        return found

    @cached_property
    def stages(self) -> Mapping[int, str]:
        """The paper's numbering, where the model declares or the library knows it.

        Blocks are numbered as they run: one that a list holds once and that is called six times has six numbers.

        Raises:
            CaptureError: the model has blocks, and its forward cannot be captured.
        """
        network = find_network(self.model)
        if isinstance(network, str):
            self.unnumbered = network
            return {}
        if not network.blocks:
            return network.stages()
        blocks = [self.canonical(path) for path in network.blocks]
        counts = self.calls(blocks)
        order = self._order(blocks)
        self.unnumbered = self._unclear(blocks, counts, order)
        if self.unnumbered:
            return {}
        if len(order) == len(blocks) or self._passes(blocks[0]) > 1:
            return network.stages()  # several passes over all of it: which one, the call says
        return network.stages(numbered_calls(order))

    def _order(self, blocks: Sequence[str]) -> list[str]:
        """The blocks as they run, each as often as it does."""
        captured = self.capture({a for path in blocks for a in self.around(path)})
        wanted, sites = set(blocks), (node.meta.get("site") for node in captured.graph.nodes)
        return [
            s.path for s in sites if s is not None and s.op is None and s.side == "after" and s.path in wanted
        ]

    def _passes(self, block: str) -> int:
        """How often what holds a list of blocks, the nearest module around it that is called itself, is called."""
        around = [path for path in ancestors(block) if path]
        counts = self.calls(around)
        return next((counts[path] for path in reversed(around) if counts[path]), 1)

    def _unclear(self, blocks: Sequence[str], counts: Mapping[str, int], order: Sequence[str]) -> str:
        """Why a number would be a guess; empty if it would not."""
        idle = next((path for path in blocks if not counts[path]), None)
        if idle is not None:
            return f"{idle!r} is never called"
        passes = self._passes(blocks[0])
        if len(order) == len(blocks) and list(order) != list(blocks):
            return "its blocks run in another order than they are listed in"
        if passes > 1 and any(counts[path] != passes for path in blocks):
            return f"its blocks are called {len(order)} times in {passes} passes"
        return ""

    @property
    def declared(self) -> Sequence[str]:
        """The stages that the model itself declares: timm's ``feature_info``, or its list of blocks."""
        info = getattr(self.model, "feature_info", None)
        entries = getattr(info, "info", info)
        if isinstance(entries, (list, tuple)) and all(isinstance(e, dict) and "module" in e for e in entries):
            return tuple(e["module"] for e in entries if e["module"] in self.by_path)
        return tuple(blocks_of(self.model))

    def capture(
        self,
        opened: Iterable[str],
        *,
        training: bool | None = None,
        marks: frozenset[Target] = frozenset(),
        open_functions: frozenset[str] = frozenset(),
    ) -> Captured:
        """Capture the model with these modules open, by default in the structure's mode; once for the same question."""
        training = self.training if training is None else training
        key = (frozenset(map(self.canonical, opened)) | {""}, training, marks, open_functions)
        signature = self.signature  # a guess is tried on this very question's simplest form
        if key not in self._captured:
            self._captured[key] = capture(
                self.model,
                key[0],
                signature,
                training=training,
                marks=marks,
                open_functions=open_functions,
                count_flops=self.count_flops and training,
            )
        return self._captured[key]

    def canonical(self, path: str) -> str:
        """The first path of a module that is registered under several."""
        return path if path in self.by_path else self._names[id(self.model.get_submodule(path))]

    def ops(self, path: str) -> Sequence[str]:
        """Names of the operations in the forward of the module at ``path``."""
        path = self.canonical(path)
        if type(self.by_path[path]).forward is nn.Module.forward or is_torch_leaf(self.by_path[path]):
            return ()
        opened = [*ancestors(path), path]
        found = dict.fromkeys(_ops(self.capture(opened), path))
        inside = self.capture(opened, open_functions=frozenset({path}))
        return tuple(found | dict.fromkeys(_ops(inside, path)))

    def is_inside_function(self, target: Target) -> bool:
        """True if an operation is found only inside a plain function that the forward calls."""
        if target.op is None:
            return False
        return target.op not in _ops(self.capture([*ancestors(target.path), target.path]), target.path)

    def calls(self, paths: Sequence[str]) -> Mapping[str, int]:
        """How often each of these modules is called in one forward."""
        if not paths:
            return {}
        names = {path: self.canonical(path) for path in paths}
        counts = self.capture({a for name in names.values() for a in self.around(name)}).calls
        hidden = {n for n in names.values() if n and not counts.get(n) and len(self._registrations(n)) > 1}
        if hidden:  # called by another name, from inside a module that is still closed
            self._hidden |= hidden
            counts = self.capture({a for name in names.values() for a in self.around(name)}).calls
        return {path: counts.get(name, 0) if name else 1 for path, name in names.items()}

    def around(self, path: str) -> set[str]:
        """The modules to open so that the calls of the module at ``path`` are seen."""
        ways = self._registrations(path) if path in self._hidden else [path]
        return {a for way in ways for a in ancestors(way)}

    def _registrations(self, path: str) -> list[str]:
        """Every path under which the module at ``path`` is registered."""
        return list(self.paths_of(self.by_path[path]))

    def instances(self, cls: type) -> Sequence[str]:
        """Paths of the modules that are instances of ``cls``."""
        return [path for path, m in self.by_path.items() if isinstance(m, cls)]

    def paths_of(self, module: object) -> Sequence[str]:
        """Every path at which this very module is registered; ``""`` where it is the model itself."""
        return [path for path, m in self.model.named_modules(remove_duplicate=False) if m is module]

    def held(self, path: str, name: str) -> str:
        """What the module at ``path`` has under a name that is no module, in words; empty where there is nothing."""
        module = self.model.get_submodule(path)
        for held in (module._parameters, module._buffers, module._modules, vars(module)):
            if name in held:
                return "" if isinstance(held[name], nn.Module) else an(held[name])
        return ""

    def candidates(self) -> Sequence[Any]:
        """Every site of the model, for predicates."""
        if self._candidates is None:
            raise SelectorError(
                "there is no list of sites here that a predicate could choose from: name the site."
            )
        return self._candidates(self)

    def capture_deep(self, wanted: Iterable[str]) -> Captured:
        """Open as many of the wanted modules as can be traced through; the others stay closed."""
        opened = {self.canonical(path) for path in wanted} | {""}
        while True:
            try:
                # the outputs of opened modules are sites as well
                found = self.capture(opened, marks=frozenset(Target(p, None, 0) for p in opened if p))
                if found.opened <= opened:
                    return found
                opened = set(found.opened)
            except CaptureError as error:
                stuck = getattr(error, "failed_in", None)
                if not stuck:
                    raise
                opened = {p for p in opened if p != stuck and not p.startswith(stuck + ".")}


def is_torch_leaf(module: nn.Module) -> bool:
    """Whether a module is torch's own and no container: what runs inside of it is no site."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS)


def _ops(captured: Captured, path: str) -> list[str]:
    found: dict[str, None] = {}
    for node in captured.graph.nodes:
        site = node.meta.get("site")
        if site is not None and site.op is not None and site.path == path:
            found[site.op] = None
    return list(found)
