"""Following rows through a forward on fake tensors: nothing is computed, and every operation is asked for its rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.proof.independence.call import Call, flat, plain_name, written
from graphaug.proof.independence.places import Meeting, Meets, Numbers, Rows, Size, State
from graphaug.proof.independence.rules.table import rule_for
from graphaug.proof.independence.symbols import RowCount
from graphaug.proof.independence.where import located
from graphaug.torch_private import FakeTensor, OpOverload, WeakIdKeyDictionary


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILLED = _names(
    "zeros ones full empty empty_strided empty_permuted new_zeros new_ones new_empty new_full new_empty_strided"
)
_DRAWN = _names("rand randn randint normal")
_TAKES_SIZES = _FILLED | _DRAWN | _names(
    "arange as_strided view _unsafe_view reshape _reshape_alias flatten unflatten expand repeat slice narrow split "
    "split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk native_group_norm slice_scatter col2im"
)  # fmt: skip
"""Operations in which a number of rows is a size, or an end of a stretch of them."""

_PAD = torch.ops.aten.constant_pad_nd.default
_DECIDES = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Follow(TorchDispatchMode):
    """Keeps the state of every tensor, in the order of a forward.

    Args:
        count: the number of rows, as a symbol.
        paths: where a module lies, by its id, for messages.
        owned: names of the tensors that belong to the model.
        stop: whether to give up where rows first meet.
    """

    supports_higher_order_operators = False

    def __init__(
        self,
        count: RowCount,
        paths: Mapping[int, str],
        owned: Callable[[Tensor], str],
        stop: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.paths, self.owned, self.stop = count, paths, owned, stop
        self.states: Any = WeakIdKeyDictionary()
        self.statistics: list[Meeting] = []
        self.state_writes: list[tuple[str, Meeting]] = []
        self.ops = 0
        self.decision: Meeting | None = None
        self._sizes: dict[Any, Size | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.ops += 1
        if func in _DECIDES:
            self.decision = self._decided(func, args[0])
        # what a kernel asks of a size is its own business: the rule holds for every size
        with self.count.kernel():
            result = _padded(*args[:2]) if func is _PAD else func(*args, **kwargs)
        if isinstance(func, OpOverload) and func.namespace != "prim":
            self._follow(func, args, kwargs, result)
        return result

    def _decided(self, func: Any, asked: Tensor) -> Meeting:
        """A tensor's value asked for in Python: by rows, a decision for all of them; else one that may change."""
        state = self.state(asked)
        if isinstance(state, Meeting):
            return state
        what = "a parameter or buffer" if state is None else "the batch, for all rows"
        return self._meeting(func, Meets(f"decides by a value of {what}", "decision"))

    # --- one operation ----------------------------------------------------------------------------------

    def _follow(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        given = [t for v in (*args, *kwargs.values()) for t in flat(v)]
        tensors = [t for t in given if isinstance(t, Tensor)]
        before = [self.state(t) for t in tensors]
        outcome: Any
        meeting = next((s for s in before if isinstance(s, Meeting)), None)
        numbers = any(map(self.count.depends, given))
        counted = any(
            isinstance(n, torch.SymInt) for t in flat(result) if isinstance(t, Tensor) for n in t.shape
        )
        if plain_name(func).startswith("new_"):  # takes nothing of a tensor but its type
            outcome = self._ruled(func, args, kwargs, result, rows=False) if counted else None
        elif meeting is not None:
            outcome = meeting
        elif numbers and plain_name(func) not in _TAKES_SIZES:
            outcome = self._meeting(func, Meets("computes with the number of rows", "place"))
        elif not counted and not any(s is not None for s in before):
            outcome = self._without_rows(func, args, kwargs)
        else:
            outcome = self._ruled(func, args, kwargs, result, any(s is not None for s in before))
        outputs = [t for t in flat(result) if isinstance(t, Tensor)]
        outcomes = outcome if isinstance(outcome, list) else [outcome] * len(outputs)
        targets = self._targets(func, args, kwargs)
        for target in targets:
            self._write(func, target, outcomes[0] if outcomes else outcome)
        for out, state in zip(outputs, outcomes, strict=True):
            if not any(out is t for t in targets):
                self.states[out] = self._checked(func, out, state)

    def _ruled(self, func: OpOverload, args: Any, kwargs: Any, result: Any, rows: bool) -> Any:
        """What the rule says, or a `Meeting`."""
        call = Call(func, args, kwargs, result, self.state, self.size)
        try:
            if not rows and call.name not in ("expand", "repeat"):
                return self._made(call)
            rule = rule_for(call)
            if rule is None:
                raise Meets(f"has no rule for {call.func._schema.name.removeprefix('aten::')}", "unknown")
            outcome = rule(call)
        except Meets as met:
            return self._meeting(func, met)
        except (
            AssertionError,
            LookupError,
            TypeError,
            ValueError,
            ZeroDivisionError,
            AttributeError,
        ) as error:
            said = f"the rule does not fit this call ({type(error).__name__})"
            return self._meeting(func, Meets(said, "unknown"))
        if call.statistics:
            self.statistics.append(self._meeting(func, Meets(call.statistics, "statistics")))
        return outcome

    def _made(self, call: Call) -> State:
        """What is made of nothing but sizes, with a dimension that counts the rows."""
        if call["generator"] is not None:
            raise Meets("draws from a generator of its own, which may be seeded", "place")
        sizes = call.sizes(call.out)
        counted = [d for d, size in enumerate(sizes) if size.batch]
        if len(counted) != 1:
            raise Meets("has no rule for two dimensions that count the rows", "unknown")
        (dim,) = counted
        count = sizes[dim].count
        if call.name == "arange" and count == 1 and call["start"] in (None, 0) and call["step"] in (None, 1):
            return Numbers(0)
        uniform = call.name in _DRAWN or (call.name in _FILLED and not self.count.depends(call["fill_value"]))
        if uniform:
            return Rows(dim, 1, count, uniform=count != 1)
        raise Meets("makes a table with an entry for each row", "place")

    def _without_rows(self, func: OpOverload, args: Any, kwargs: Any) -> State:
        """What is made of constants: one draw of it would be another one for each part of the rows."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return None
        call = Call(func, args, kwargs, None, self.state, self.size)
        off = (call["dropout_p"] == 0 if "dropout_p" in call.given else False) or call["train"] is False
        if off or (call.name in ("native_dropout", "dropout") and call["p"] == 0):
            return None
        return self._meeting(func, Meets("draws once for all rows", "draw"))

    # --- states -----------------------------------------------------------------------------------------

    def state(self, tensor: Tensor) -> State:
        """The state of a tensor; of one that was never seen, none where it can hold no rows."""
        found = self.states.get(tensor, self)
        if found is not self:
            return cast(State, found)
        if not isinstance(tensor, FakeTensor):
            return None  # a constant of the model or its code
        shares = tensor.untyped_storage()._cdata
        known = (s for t, s in list(self.states.items()) if s is not None and _storage(t) == shares)
        if next(known, None) is None and not any(isinstance(n, torch.SymInt) for n in tensor.shape):
            return None
        return Meeting("unknown", "", "a value was made in a way that cannot be followed")

    def by_sizes(self, value: Any) -> Rows | None:
        """The one dimension of a value that is as long as there are rows."""
        counted = (
            [d for d, n in enumerate(value.shape) if self.count.depends(n)]
            if isinstance(value, Tensor)
            else []
        )
        with contextlib.suppress(Meets):
            if len(counted) == 1 and self.size(value.shape[counted[0]]) == Size(1, True):
                return Rows(counted[0])
        return None

    def size(self, value: Any) -> Size:
        """A size as a multiple of one, or of the number of rows.

        Raises:
            Meets: it is neither.
        """
        if isinstance(value, int):
            return Size(value, False)
        expression = value.node.expr
        if expression not in self._sizes:
            factor = expression / self.count.symbol
            found = None
            if expression.is_Integer:
                found = Size(int(expression), False)
            elif factor.is_Integer:
                found = Size(int(factor), True)
            self._sizes[expression] = found
        size = self._sizes[expression]
        if size is None:
            raise Meets("makes a size of the number of rows that is no multiple of it", "place")
        return size

    def _checked(self, func: OpOverload, out: Tensor, state: State) -> State:
        """The state, if it fits the sizes of the value; a rule that does not is no rule."""
        counted = [d for d, n in enumerate(list[Any](out.shape)) if isinstance(n, torch.SymInt)]
        if isinstance(state, Meeting):
            return state
        try:
            if state is None:
                fits = not counted
            elif isinstance(state, Numbers):
                fits = self.size(out.shape[state.dim]) == Size(1, True)
            else:
                fits = counted == [state.dim] and self.size(out.shape[state.dim]) == Size(state.slices, True)
        except (Meets, IndexError):
            fits = False
        if fits:
            return state
        return self._meeting(func, Meets("gives a value of which the rows cannot be told", "unknown"))

    def _targets(self, func: OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
        names = written(func)
        if not names:
            return []
        call = Call(func, args, kwargs, None, self.state, self.size)
        return [t for name in names for t in flat(call.given.get(name)) if isinstance(t, Tensor)]

    def _write(self, func: OpOverload, target: Tensor, new: Any) -> None:
        """What a write in place does to everything in the same memory."""
        held = self.owned(target)
        if held:
            self.state_writes.append((held, self._meeting(func, Meets("keeps state of the batch"))))
            return
        old = self.state(target)
        if new == old or (
            isinstance(old, Rows) and isinstance(new, Rows) and new.uniform and not old.uniform
        ):
            return
        shared = [t for t in list(self.states.keys()) if _storage(t) == _storage(target)]
        unlike = [t for t in shared if self.states[t] is not old or t.shape != target.shape]
        if isinstance(new, Rows) and isinstance(old, Rows) and old.uniform and not unlike:
            found: State = new
        elif isinstance(new, Meeting):
            found = new
        else:
            found = self._meeting(func, Meets("writes rows where others or constants lay", "unknown"))
        for t in shared:
            self.states[t] = found
        self.states[target] = found

    def _meeting(self, func: OpOverload, met: Meets) -> Meeting:
        """Name the place; and give up there, if that was asked for."""
        found = located(met, plain_name(func), self.paths)
        if self.stop and met.kind not in ("statistics", "state"):
            self.decision = found
            raise met
        return found


def _padded(x: Tensor, widths: Any) -> Tensor:
    """A padded value: torch's own kernel takes the number of rows for a plain number."""
    sizes = list(x.shape)
    for i in range(len(widths) // 2):
        sizes[-1 - i] = sizes[-1 - i] + widths[2 * i] + widths[2 * i + 1]
    return x.new_empty(sizes)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
