"""What a captured model takes: the inputs of its forward, read off its signature or its examples."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.caches import USE_CACHE, Cache, cache_of
from graphaug.capture.inputs.given import given
from graphaug.capture.inputs.spare import makes_no_difference
from graphaug.capture.values import taken_from
from graphaug.errors import AssumptionViolated, CaptureError, an, did_you_mean

_EMPTY = inspect.Parameter.empty
_CONSTANT = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Input:
    """One placeholder of the graph.

    ``default`` is set for what the example gives as a plain constant: the graph holds for that value only, and
    ``otherwise`` is what the forward takes where a call lacks it.
    ``rank`` and ``floating`` describe the example tensor, if there was one.
    """

    name: str
    keyword: bool
    default: Any = _EMPTY
    otherwise: Any = _EMPTY
    rank: int | None = None
    floating: bool | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs of a captured model.

    Attributes:
        model: class name of the model, for messages.
        positional: the forward's positional parameters, in order.
        inputs: the captured ones.
        defaults: the parameters that were not captured, with their defaults.
        guessed: where the examples come from, if they were not given: "pretrained_cfg: 2×3×224×224"; else empty.
        examples: their values; not needed once the capture is done. Those that were not given lie on the meta device.
        doubled: whether they had one row, which was taken twice.
        cache: of a decoder whose configuration asks for one.
    """

    model: str
    positional: tuple[str, ...]
    captured: tuple[Input, ...]
    defaults: Mapping[str, Any]
    guessed: str = ""
    examples: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    doubled: bool = False
    cache: Cache = field(default_factory=Cache)

    @staticmethod
    def of(model: nn.Module, example_inputs: Any, guessed: str = "") -> Signature:
        """Read the signature of ``model.forward`` with examples.

        Args:
            model: the model.
            example_inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
            guessed: where they come from, if the user did not give them.

        Raises:
            CaptureError: the examples do not fit the forward.
        """
        positional, named, examples = given(model, example_inputs, "example_inputs")
        examples, doubled = _two_rows(examples)
        cache = cache_of(model, examples, positional, named)
        if cache.left_out:
            examples = {**examples, USE_CACHE: False}
        order = [p for p in (*positional, *named, *examples) if p in examples]
        otherwise = dict(named)
        for p in examples.keys() - {*positional, *named}:
            told = p == USE_CACHE and cache.left_out
            if (
                type(examples[p]) in _CONSTANT
                and not told
                and makes_no_difference(model, examples, positional, p)
            ):
                otherwise[p] = examples[p]  # a call without it is no other
        captured = tuple(
            _input(p, examples[p], p not in positional, otherwise.get(p, _EMPTY))
            for p in dict.fromkeys(order)
        )
        defaults = {p: default for p, default in named.items() if p not in examples}
        name = type(model).__name__
        return Signature(name, positional, captured, defaults, guessed, examples, doubled, cache)

    def inputs(self, to_fake: Callable[[Any], Any]) -> Iterator[tuple[str, Any, Any]]:
        """Yield (name, default, example value) of every placeholder."""
        for entry in self.captured:
            yield entry.name, entry.default, to_fake(self.examples[entry.name])

    def arrange(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Split named arguments into the positional ones up to the first gap, and keywords."""
        args: list[Any] = []
        for name in self.positional:
            if name not in arguments:
                break
            args.append(arguments[name])
        return args, {name: v for name, v in arguments.items() if name not in self.positional[: len(args)]}

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, to_the_letter: bool = False
    ) -> dict[str, Any]:
        """Match a call to the captured inputs.

        Args:
            args: the positional inputs.
            kwargs: the others.
            to_the_letter: do not take ``use_cache=False`` for granted where a call lacks it.

        Raises:
            AssumptionViolated: it gives an input that was not captured, lacks one, or gives one of
                another rank or kind of dtype.
        """
        if len(args) > len(self.positional):
            raise AssumptionViolated(
                f"{self.model} takes {len(self.positional)} positional inputs, not {len(args)}."
            )
        by_place = dict(zip(self.positional, args, strict=False))
        for name in by_place.keys() & kwargs.keys():
            raise AssumptionViolated(
                f"{self.model}: this call gives {name!r} twice, by its place and by its name."
            )
        given = {**by_place, **kwargs}
        values: dict[str, Any] = {}
        for entry in self.captured:
            value = given.pop(entry.name, _EMPTY)
            if value is not _EMPTY and not (value is None and self._is_left_out(entry)):
                values[entry.name] = self._checked(entry, value)
            elif self._lacks(entry, to_the_letter):
                raise AssumptionViolated(self._lacking(entry))
            else:
                values[entry.name] = entry.default
        for name, value in given.items():
            if name in self.defaults and _same(value, self.defaults[name]):
                continue
            hint = "" if name in self.defaults else did_you_mean(name, [e.name for e in self.captured])
            raise AssumptionViolated(
                f"{self.model} was captured without {name!r}.{hint} To use it, pass it in example_inputs: "
                f"rewrite(model, ..., example_inputs={{..., {name!r}: ...}})."
            )
        return values

    def spelled_out(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with the ``use_cache=False`` that it means where it says nothing of it."""
        if not self.cache.left_out or kwargs.get(USE_CACHE) is not None:
            return args, dict(kwargs)
        place = self.positional.index(USE_CACHE) if USE_CACHE in self.positional else len(args)
        if place >= len(args):
            return args, {**kwargs, USE_CACHE: False}
        return (*args[:place], False if args[place] is None else args[place], *args[place + 1 :]), dict(
            kwargs
        )

    def _is_left_out(self, entry: Input) -> bool:
        return entry.name == USE_CACHE and self.cache.left_out

    def _lacks(self, entry: Input, to_the_letter: bool) -> bool:
        """Whether a call without this input is none that the graph holds for."""
        if entry.default is _EMPTY:
            return True
        if _same(entry.otherwise, entry.default):
            return False
        return to_the_letter or not self._is_left_out(entry)

    def _lacking(self, entry: Input) -> str:
        how = repr(entry.name) if entry.default is _EMPTY else f"{entry.name}={entry.default!r}"
        advice = taken_from(self.guessed) or " Give it, or call rewrite again with example_inputs like these."
        then = "" if entry.otherwise is _EMPTY else f": it is {entry.otherwise!r} there"
        return f"{self.model} was captured with {how}, which this call lacks{then}.{advice}"

    def take(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The captured inputs out of the proxies of another tracer: positional ones by their place, others by name."""
        place = {name: i for i, name in enumerate(self.positional)}
        return {
            e.name: e.default
            if e.default is not _EMPTY
            else kwargs[e.name]
            if e.name not in place
            else args[place[e.name]]
            for e in self.captured
        }

    def _checked(self, entry: Input, value: Any) -> Any:
        if entry.default is not _EMPTY and not _same(value, entry.default):
            advice = taken_from(self.guessed) or " Call rewrite again with example_inputs like these."
            if self._is_left_out(entry):
                advice = " No graph holds a cache: leave it out in training mode."
            raise AssumptionViolated(
                f"{self.model} was captured for {entry.name} == {entry.default!r}, but this call has {value!r}.{advice}"
            )
        if entry.rank is None:
            return value
        if not isinstance(value, Tensor):
            raise AssumptionViolated(
                f"{self.model}: input {entry.name!r} is {an(value)}, but it was captured with a "
                f"tensor.{taken_from(self.guessed)}"
            )
        if value.dim() != entry.rank:
            raise AssumptionViolated(
                f"{self.model}: input {entry.name!r} has {value.dim()} dimensions {tuple(value.shape)}, "
                f"but it was captured with {entry.rank}.{taken_from(self.guessed)}"
            )
        if value.is_floating_point() != entry.floating:
            kind = "floating-point" if entry.floating else "integer"
            raise AssumptionViolated(
                f"{self.model}: input {entry.name!r} is {value.dtype}, but it was captured with a {kind} "
                f"tensor.{taken_from(self.guessed)}"
            )
        return value

    def forget_examples(self) -> Signature:
        """The same signature without the example values."""
        return dataclasses.replace(self, examples={})

    def python_signature(self, *forwards: Callable[..., Any]) -> inspect.Signature:
        """What ``inspect.signature`` should say: all that the forwards name, what was captured beside that, no ``**``.

        Trainers drop the columns of a batch that it lacks, silently; and they take ``**`` for leave to give inputs of
        their own, as ``num_items_in_batch``.
        """
        only = inspect.Parameter.KEYWORD_ONLY
        own, *inside = ([*inspect.signature(forward).parameters.values()] for forward in forwards)
        named = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD}
        beside = {
            p.name: p.default
            for more in inside
            for p in more
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        beside |= {e.name: e.default for e in self.captured if e.name not in self.positional}
        more = [
            inspect.Parameter(n, only, default=default) for n, default in beside.items() if n not in named
        ]
        return inspect.Signature([*named.values(), *more])


def _two_rows(examples: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """A batch of one taken twice, and whether it was: of one row nobody can tell the batch from what is squeezed.

    Raises:
        CaptureError: no example tensor has a row.
    """
    leaves = torch.utils._pytree.tree_leaves(dict(examples))
    rows = {t.shape[0] for t in leaves if isinstance(t, Tensor) and t.dim() > 0}
    if not rows or max(rows) > 1:
        return examples, False
    if max(rows) < 1:
        raise CaptureError("example_inputs has a batch of 0: give 1 row or more.")
    found: dict[str, Any] = map_tensors(
        lambda t: torch.cat([t, t]) if t.dim() and t.shape[0] == 1 else t, examples
    )
    return found, True


def _input(name: str, example: Any, keyword: bool, otherwise: Any) -> Input:
    if type(example) in _CONSTANT:  # members of an IntEnum and numbers of NumPy have no spelling in code
        return Input(name, keyword, default=example, otherwise=otherwise)
    if isinstance(example, Tensor):
        return Input(name, keyword, rank=example.dim(), floating=example.is_floating_point())
    return Input(name, keyword)


def _same(value: Any, constant: Any) -> bool:
    """Whether a value is a constant, and of its type: a forward can tell True from 1."""
    return value is constant or (
        type(value) is type(constant) and isinstance(value, _CONSTANT) and bool(value == constant)
    )


def map_tensors(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply ``fn`` to every tensor in a nested structure of inputs; what is one tensor stays one."""
    made: dict[int, Any] = {}

    def once(v: Any) -> Any:
        if not isinstance(v, Tensor):
            return v
        if id(v) not in made:
            made[id(v)] = fn(v)
        return made[id(v)]

    return torch.utils._pytree.tree_map(once, value)
