"""Following rows through a forward on fake tensors: nothing is computed, and every operation is asked for its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.proof.independence.call import Call, flat, plain_name, written
from graphaug.proof.independence.places import Meeting, Meets, Numbers, Rows, State
from graphaug.proof.independence.rules.table import rule_for
from graphaug.proof.independence.states import States, is_known
from graphaug.proof.independence.symbols import RowCount
from graphaug.proof.independence.where import located
from graphaug.torch_private import OpOverload


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
_PACKS = torch.ops.aten._pack_padded_sequence.default
_SQUEEZES = torch.ops.aten.squeeze.dim
_TAKES_APART = {torch.ops.aten.unbind.int, torch.ops.aten.split.Tensor}
_DECIDES = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Follow(States, TorchDispatchMode):
    """Asks every operation for its rule, in the order of a forward.

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
        States.__init__(self, count, paths, owned, stop)
        TorchDispatchMode.__init__(self)
        self.statistics: list[Meeting] = []
        self.draws: list[Meeting] = []
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.ops += 1
        if func in _DECIDES:
            self.decision = self._decided(func, args[0])
        if func is _PACKS:
            met = Meets("pack_padded_sequence puts rows where their lengths say", "unknown")
            self.decision = located(met, "", self.paths)  # not to be tried: the sizes behind it are not known
            raise met
        if torch.Tag.inplace_view in getattr(func, "tags", ()):
            return self._view_in_place(func, types, args, kwargs)
        if func is _SQUEEZES and self.count.function == "lstm" and self._has_rows(*args):
            # torch 2.11 writes an LSTM out with a squeeze of its samples; its kernels keep a single one as well
            func, args = torch.ops.aten.alias.default, args[:1]
        if func in _TAKES_APART:
            self._refuse_apart(Call(func, args, kwargs, None, self.state, self.size))
        # what a kernel asks of a size is its own business: the rule holds for every size
        with self.count.kernel():
            result = _padded(*args[:2]) if func is _PAD else func(*args, **kwargs)
        if isinstance(func, OpOverload) and func.namespace != "prim":
            if self._draws(func, args, kwargs):  # which is no meeting, and ends no trace
                self.draws.append(located(Meets("draws", "draw"), plain_name(func), self.paths))
            self._follow(func, args, kwargs, result)
        return result

    def _view_in_place(self, func: OpOverload, types: Any, args: Any, kwargs: Any) -> Any:
        """``squeeze_`` and its like change a tensor's own shape: its rows are where those of the view are."""
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        twin = getattr(packet, func._overloadname, None) or getattr(packet, "int", None)
        if twin is None or torch.Tag.inplace_view in twin.tags:
            state: State = self._meeting(func, Meets(f"has no rule for {func._schema.name}", "unknown"))
        else:
            state = self.state(self.__torch_dispatch__(twin, types, args, kwargs))
        with self.count.kernel():
            result = func(*args, **kwargs)
        self.states[args[0]] = state
        return result

    def _has_rows(self, tensor: Tensor, dim: int) -> bool:
        state = self.state(tensor)
        return isinstance(state, Rows) and state.dim == dim % tensor.dim()

    def _refuse_apart(self, call: Call) -> None:
        """Give up where a value is cut in as many pieces as there are rows: what is done to each would be followed.

        Raises:
            Meets: it is.
        """
        tensor = call["self"]
        single = call.name == "unbind" or call["split_size"] == 1
        if single and self._has_rows(tensor, call["dim"]):
            met = Meets("takes the rows apart, each for itself", "place")
            self.decision = located(met, call.name, self.paths)
            raise met

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
            not is_known(n) for t in flat(result) if isinstance(t, Tensor) for n in list[Any](t.shape)
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
        behind = next((self.assumed[t] for t in tensors if t in self.assumed), None)
        for target in targets:
            self._write(func, target, outcomes[0] if outcomes else outcome, behind)
        for out, state in zip(outputs, outcomes, strict=True):
            if not any(out is t for t in targets):
                found = self._checked(func, out, state)
                place = None if self.stop or targets else self.by_sizes(out)
                if isinstance(found, Meeting) and found.kind == "unknown" and found is not meeting and place:
                    # followed further as its sizes tell, to see whether the rows meet behind it, too
                    found, behind = place, behind or found
                self.states[out] = found
                if behind is not None and found is not None:
                    self.assumed[out] = behind

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
        if not self._draws(func, args, kwargs):
            return None
        return self._meeting(func, Meets("draws once for all rows", "draw"))

    def _draws(self, func: OpOverload, args: Any, kwargs: Any) -> bool:
        """Whether an operation draws from a generator, a dropout that is off not."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return False
        call = Call(func, args, kwargs, None, self.state, self.size)
        off = (call["dropout_p"] == 0 if "dropout_p" in call.given else False) or call["train"] is False
        return not (off or (call.name in ("native_dropout", "dropout") and call["p"] == 0))

    def _targets(self, func: OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
        names = written(func)
        if not names:
            return []
        call = Call(func, args, kwargs, None, self.state, self.size)
        return [t for name in names for t in flat(call.given.get(name)) if isinstance(t, Tensor)]


def _padded(x: Tensor, widths: Any) -> Tensor:
    """A padded value: torch's own kernel takes the number of rows for a plain number."""
    sizes = list(x.shape)
    for i in range(len(widths) // 2):
        sizes[-1 - i] = sizes[-1 - i] + widths[2 * i] + widths[2 * i + 1]
    return x.new_empty(sizes)
