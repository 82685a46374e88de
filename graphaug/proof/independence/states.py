"""What is known of every tensor of a trace: where its rows lie, and what writes in place do to what shares memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from graphaug.proof.independence.call import plain_name
from graphaug.proof.independence.places import Meeting, Meets, Numbers, Rows, Size, State
from graphaug.proof.independence.symbols import RowCount
from graphaug.proof.independence.where import located
from graphaug.torch_private import FakeTensor, OpOverload, WeakIdKeyDictionary, storage_of


class States:
    """The states of tensors.

    Args:
        count: the number of rows, as a symbol.
        paths: where a module lies, by its id, for messages.
        owned: names of the tensors that belong to the model.
        stop: whether to give up where rows first meet.

    Attributes:
        states: tensor -> state.
        assumed: tensor -> the operation without a rule that it lies behind; its rows are where sizes tell.
        state_writes: what of the model is written into, and where.
        decision: what the forward last asked for in Python, or where it was given up.
    """

    def __init__(
        self, count: RowCount, paths: Mapping[int, str], owned: Callable[[Tensor], str], stop: bool
    ) -> None:
        self.count, self.paths, self.owned, self.stop = count, paths, owned, stop
        self.states: Any = WeakIdKeyDictionary()
        self.assumed: Any = WeakIdKeyDictionary()
        self.state_writes: list[tuple[str, Meeting]] = []
        self.decision: Meeting | None = None
        self._sizes: dict[Any, Size | None] = {}

    def state(self, tensor: Tensor) -> State:
        """The state of a tensor; of one that was never seen, none where it can hold no rows."""
        found = self.states.get(tensor, self)
        if found is not self:
            return cast(State, found)
        if not isinstance(tensor, FakeTensor):
            return None  # a constant of the model or its code
        shares = storage_of(tensor)
        if shares is None:
            return Meeting("unknown", "", "a tensor without memory of its own cannot be followed")
        known = (s for t, s in list(self.states.items()) if s is not None and storage_of(t) == shares)
        if next(known, None) is None and not any(isinstance(n, torch.SymInt) for n in tensor.shape):
            return None
        return Meeting("unknown", "", "a value was made in a way that cannot be followed")

    def _sharing(self, target: Tensor) -> list[Tensor]:
        """The tensors in the memory of one, itself among them where it was seen."""
        place = storage_of(target)
        return [
            t
            for t in list(self.states.keys())
            if t is target or (place is not None and storage_of(t) == place)
        ]

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
        counted = [d for d, n in enumerate(list[Any](out.shape)) if not is_known(n)]
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

    def _write(self, func: OpOverload, target: Tensor, new: Any, behind: Meeting | None) -> None:
        """What a write in place does to everything in the same memory."""
        held = self.owned(target)
        if held:
            self.state_writes.append((held, self._meeting(func, Meets("keeps state of the batch"))))
            return
        if behind is not None:
            for t in self._sharing(target):
                self.assumed[t] = behind
        old = self.state(target)
        covered = isinstance(old, Rows) and isinstance(new, Rows) and new.uniform and not old.uniform
        if not isinstance(new, Meeting) and (new == old or covered):
            return  # a view that rows meet in may be of a value that they do not meet in yet
        shared = self._sharing(target)
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


def is_known(size: Any) -> bool:
    """Whether a size is a number, also one that is written as a symbol."""
    return not isinstance(size, torch.SymInt) or bool(size.node.expr.is_Integer)
