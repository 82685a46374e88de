"""The attributes of opened modules: numbers are read in every call, switches relied on, what is set is set again."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.recording.opened.held_modules import held_elsewhere, is_left, read_by
from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.classes import has_no_effect, is_foreign
from graphaug.capture.recording.relied.code_names import read_names, stored_names
from graphaug.capture.recording.relied.facts import ABSENT, ALL, Fact, attributes_of, is_plain, same
from graphaug.capture.recording.relied.lookups import asks_for_all
from graphaug.capture.recording.session import RETURN_IT
from graphaug.capture.recording.values.numbers import Float
from graphaug.capture.recording.values.structures import tensors_in
from graphaug.capture.state import FILLED, OF_EVERY_MODULE, ModelState
from graphaug.capture.user_code import user_line
from graphaug.errors import CaptureError


class Attributes:
    """What opened code reads and sets on its modules.

    Args:
        model: the model.
        opened: paths of the opened modules.
        recorder: what records.
        seen: gives for a function that an attribute holds what opened code gets of it.

    Attributes:
        facts: what the graph relies on, by module and attribute; without an attribute, what is known of its hooks.
        reads: what was read, by the id of the module or other object and the attribute.
        by_dict: what may have been read out of a module's ``__dict__``, where that was asked for.
        set_again: paths of the attributes that the graph sets, as the forward does.
    """

    def __init__(
        self, model: nn.Module, opened: frozenset[str], recorder: Recorder, seen: Callable[[Any], Any]
    ) -> None:
        self.model, self.opened, self.recorder = model, opened, recorder
        self._seen = seen
        self.facts: dict[tuple[str, str], Fact] = {}
        self.reads: set[tuple[int, str]] = set()
        self.by_dict: set[tuple[int, str]] = set()
        self._numbers: dict[tuple[str, str], fx.Node] = {}
        self.set_again: set[str] = set()
        self._sets: dict[tuple[int, str], str] = {}  # and the user's line
        self._changed: dict[tuple[int, str], None] = {}  # of these, what was something else before
        self._reads_before: set[tuple[int, str]] = set()
        self._own = {id(m) for m, path in recorder.ledger.paths.items() if path in opened}
        self._lines: dict[tuple[int, str], str] = {}

    def watch(self, patches: Patches, objects: Iterable[Any] = ()) -> None:
        """See every attribute that opened code reads off a module, or off one of these other objects."""
        for cls in {type(m) for m in self.recorder.ledger.paths}:
            patches.method(cls, "__getattribute__", self._read)
            patches.method(cls, "__setattr__", self._set)
        for cls in {type(value) for value in objects} - {type(m) for m in self.recorder.ledger.paths}:
            patches.method(cls, "__getattribute__", self._note_read)

    def _note_read(self, original: Callable[..., Any], value: Any, name: str) -> Any:
        self.reads.add((id(value), name))
        if (id(value), name) not in self._sets:
            self._reads_before.add((id(value), name))
        return original(value, name)

    def _set(self, original: Callable[..., Any], m: nn.Module, name: str, value: Any) -> None:
        before = vars(m).get(name, ABSENT)
        original(m, name, value)
        self._sets[id(m), name] = user_line()
        if value is not before and not (is_plain(value) and same(value, before)):
            self._changed[id(m), name] = None

    def _read(self, original: Callable[..., Any], m: nn.Module, name: str) -> Any:
        """A float of a module is read in every call; other numbers and switches are relied on."""
        try:
            value = self._note_read(original, m, name)
        except AttributeError:
            with self.recorder.session.unrecorded():
                self._note_missing(m, name)
            raise
        if id(m) not in self._own and (id(m), name) not in self._lines:
            self._lines[id(m), name] = user_line()
        if type(value) is float or is_plain(value):
            with self.recorder.session.unrecorded():
                return self._noted(m, name, value)
        if isinstance(value, types.GeneratorType):  # once something was taken, it cannot be put back
            raise self.recorder.session.refuse(
                f"it reads self.{name}, a generator, which goes on with what is taken",
                reason=" Count in a number (self.step = self.step + 1), or hand in what it gives as an input.",
            )
        if name == ALL and (code := asks_for_all(sys._getframe(2))) is not None:
            with self.recorder.session.unrecorded():
                self._note_all(m, value, code)
        return self._seen(value)

    def _noted(self, m: nn.Module, name: str, value: Any) -> Any:
        if (path := self._path(m, name)) is None or (id(m), name) in self._sets:
            return value  # what this call has set itself is what it was set to
        if name not in vars(m):
            held = next((vars(c)[name] for c in type(m).__mro__ if name in vars(c)), None)
            if is_plain(held):  # of its class; a property reads other names
                self.facts.setdefault((path, name), Fact(path, name, value))
            return value
        if type(value) is float:
            return Float(self.recorder.answers, value, lambda: self._number(path, name, value))
        if path not in self.opened and name in stored_names(type(m)):
            raise self._left_by_closed(m, path, name)
        self.facts.setdefault((path, name), Fact(path, name, value))
        return value

    def _path(self, m: nn.Module, name: str) -> str | None:
        """The path of a module of which a name is relied on; None if it is none of this model's, or torch's own."""
        path = self.recorder.ledger.paths.get(m)
        by_mode = name == "training" and not path  # each mode has its graph
        of_class = not is_plain(vars(nn.Module).get(name))  # what is plain there, users have put there
        of_torch = name != "training" and (name in OF_EVERY_MODULE or of_class)
        return None if by_mode or of_torch or has_no_effect(m, name) else path

    def _note_missing(self, m: nn.Module, name: str) -> None:
        """A tensor or child may be None, and an attribute may not be there: ``getattr(self, "gain", 1.0)``."""
        path = None if name.startswith("__") else self._path(m, name)
        if path is None:
            return
        registries = [vars(m).get(r, {}) for r in ("_parameters", "_buffers", "_modules")]
        if any(name in registry for registry in registries):
            if all(registry.get(name) is None for registry in registries):
                self.facts.setdefault((path, name), Fact(path, name, None))
        elif not hasattr(m, name):
            self.facts.setdefault((path, name), Fact(path, name, ABSENT))

    def _note_all(self, m: nn.Module, held: dict[str, Any], code: types.CodeType) -> None:
        """``vars(self)``: what is read there is not seen."""
        if (path := self.recorder.ledger.paths.get(m)) is not None:
            self.facts.setdefault((path, ALL), Fact(path, ALL, attributes_of(m)))
        for name in code.co_consts:
            if type(name) is str and name.startswith("_") and name not in held:
                self._note_missing(m, name)
        for name, value in held.items():
            self.by_dict.add((id(m), name))
            self._reads_before.add((id(m), name))
            if is_plain(value) and (path := self._path(m, name)) is not None:
                self.facts.setdefault((path, name), Fact(path, name, value))

    def _number(self, path: str, name: str, value: float) -> fx.Node:
        if (path, name) not in self._numbers:
            node = self.recorder.nodes.fact(f"{path}.{name}".removeprefix("."), value)
            self.recorder.nodes.vary(node)
            self._numbers[path, name] = node
        return self._numbers[path, name]

    def check_call(self, m: nn.Module, path: str) -> None:
        """Refuse to call a closed module that may read what was set on it: a graph sets it behind all calls.

        Raises:
            CaptureError: names the attribute.
        """
        within = {id(inner): inner for inner in m.modules()} if self._changed else {}
        beside = held_elsewhere(m) if self._changed else {}
        for number, name in self._changed:
            inner = within.get(number)
            if inner is None and name in read_by(m):
                inner = beside.get(number)
            if inner is None or inner not in self.recorder.ledger.paths:
                continue
            place = f"{self.recorder.ledger.paths[inner]}.{name}".removeprefix(".")
            raise self.recorder.session.refuse(
                f"it sets {place!r} and then calls {path!r}, which may read it",
                reason=" A graph sets attributes behind all calls: hand it over as an argument, or choose a site "
                "outside the module that sets it.",
                line=self._sets[number, name],
            )

    def check_left(self, changed: Collection[str], rebound: Collection[tuple[int, str]]) -> None:
        """Refuse to read what a closed module leaves behind in its own attributes when it is called.

        Args:
            changed: the attributes that were set, and the names of what they hold that was filled.
            rebound: attributes of classes that were set, by the class's id.

        Raises:
            CaptureError: names the attribute.
        """
        paths = {id(m): (path, m) for m, path in self.recorder.ledger.paths.items()}
        closed = (
            (*paths[number], name)
            for number, name in self.reads - self._sets.keys()
            if number in paths and paths[number][0] not in self.opened
        )
        for path, module, name in sorted(closed, key=lambda read: (read[0], read[2])):
            if name in OF_EVERY_MODULE or name in module._modules:
                continue
            once = type(vars(module).get(name)) is bool and is_foreign(type(module).__module__)
            if not once and is_left(module, path, name, changed, rebound):
                raise self._left_by_closed(module, path, name)

    def _left_by_closed(self, module: nn.Module, path: str, name: str) -> CaptureError:
        return self.recorder.session.refuse(
            f"it reads '{path}.{name}', which {path!r} sets or fills when it is called",
            reason=RETURN_IT,
            line=self._lines.get((id(module), name), ""),
        )

    def write_back(self, state: ModelState) -> None:
        """A node for every attribute that the forward sets.

        Args:
            state: the model as it was before.

        Raises:
            CaptureError: what it sets depends on what was there before, which a graph cannot follow.
        """
        self._drop_what_is_set(state)
        for name, before in state.replaced():
            path, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(path)
            if path not in self.opened and not self._is_ours(module, attribute, before):
                continue  # the closed module sets it when it is called
            value = getattr(module, attribute)
            if is_plain(value) and is_plain(before) and value == before:
                continue
            line = self._sets.get((id(module), attribute), "")
            if before is FILLED and (id(module), attribute) not in self.reads:
                continue  # by a hook, or closed code, that fills it in a call of the graph too
            kept = isinstance(before, Tensor) and isinstance(value, Tensor)
            once = type(value) is bool
            if not kept and (self._is_read(module, attribute, once) or before is FILLED):
                if before is None and isinstance(value, Tensor) and not self._carries_data(value):
                    continue  # a table that is made of sizes alone; the graph makes it in every call
                raise self.recorder.session.refuse(
                    f"it keeps {name!r} from one call to the next",
                    reason=" A graph has no memory but buffers: make it one (register_buffer), or choose a site "
                    "outside that module, so that it stays closed.",
                    line=line,
                )
            if once and is_foreign(type(module).__module__):
                continue  # "done once": what it stands for (hooks of transformers) was undone with it
            self.facts.pop((path, attribute), None)
            self.set_again.add(name)
            lower, create = self.recorder.ledger.lower, self.recorder.nodes.create
            held = lower(value)
            if isinstance(value, torch.Size):  # whose entries are held as a tuple
                held = create("call_function", torch.Size, (held,), {})
            node = create("call_function", setattr, (lower(module), attribute, held), {})
            node.meta["assigned"] = f"self.{attribute}" + (f" of '{path}'" if path else "")
            node.meta["line"] = line
        self._rely_on_what_stays(state)

    def _rely_on_what_stays(self, state: ModelState) -> None:
        """Rely on what is set to what it was: set to something else from outside, a graph would not put it back."""
        paths = {id(m): (path, m) for m, path in self.recorder.ledger.paths.items()}
        for number, name in self._sets:
            path, module = paths.get(number, ("", None))
            if module is None or self._path(module, name) is None or f"{path}.{name}" in self.set_again:
                continue
            value = vars(module).get(name, ABSENT)
            if is_plain(value) and same(value, state.before(path, name)):
                self.facts.setdefault((path, name), Fact(path, name, value))

    def _is_ours(self, module: nn.Module, attribute: str, before: Any) -> bool:
        """Whether opened code changed what a closed module holds, as a method of it does that is no forward."""
        key = (id(module), attribute)
        return key in self._sets or (before is FILLED and key in self.reads)

    def _is_read(self, module: nn.Module, attribute: str, once: bool) -> bool:
        """Whether the module's own code may read what an attribute was before the call, and not what the call set."""
        key = (id(module), attribute)
        set_first = key in self._sets and key not in self._reads_before
        # A helper, or getattr with a name, reads it where the class does not say so; a flag may ask what is done once.
        return (key in self._reads_before and not once) or (
            attribute in read_names(type(module)) and not set_first
        )

    def _drop_what_is_set(self, state: ModelState) -> None:
        """Rely on nothing that the forward itself sets before it is read, nor on what it sets on closed modules."""
        for (path, name), fact in list(self.facts.items()):
            if not name or name == "training":
                continue
            module = self.model.get_submodule(path)
            own = name in vars(module)
            before = state.before(path, name) if own else fact.expected
            if not same(before, fact.expected) or (
                (path not in self.opened or not own) and not fact.holds(module)
            ):
                del self.facts[path, name]

    def _carries_data(self, value: Any) -> bool:
        data = self.recorder.nodes.of_data()
        return any(self.recorder.ledger.node_of(t) in data for t in tensors_in(value))
