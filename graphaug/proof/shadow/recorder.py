"""The recorder of the shadow: what runs inside of it as a record, operation by operation.

Operations are recorded as PyTorch dispatches them, so that it does not matter how Python spelled them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.recording.checks import truth_as_assertion
from graphaug.capture.regions import KINDS
from graphaug.capture.user_code import in_message, user_line
from graphaug.proof.shadow.origins import Origins
from graphaug.proof.shadow.records import Entry, Record, Result, Token, results

# Python sees the numbers, or the memory itself: what is done with them is in no record
_UNSEEN = {
    "numpy", "__array__", "data_ptr", "__dlpack__", "untyped_storage", "storage", "apply_", "map_",
    "map2_", "__deepcopy__", "__reduce_ex__", "_typed_storage", "set_",
}  # fmt: skip
# changes of a tensor that are no operations
_CHANGES = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "requires_grad_"}
_SET = {"data", "requires_grad", "grad"}
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
_RESIZED = {"resize_", "resize_as_"}
# batch norms write these in training mode, and their schemas do not say so
_WRITTEN_UNSAID = {"running_mean", "running_var"}
_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero", "item"}


class Recorder(TorchDispatchMode):
    """Records what runs inside of it.

    Args:
        named: tensor -> its name: inputs, parameters, buffers and other tensors of the model.
        graph_ids: numbers of gradient graphs, shared by the records that are to be compared.

    Attributes:
        record: what ran.
        origins: where its tensors come from.
        calls: closed modules that were called.
    """

    def __init__(self, named: Mapping[str, Tensor], graph_ids: dict[Token, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record()
        self.origins = Origins(named, graph_ids)
        self.calls = 0
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._functions = _Functions(self)

    def __enter__(self) -> Any:
        entered = super().__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def add(self, name: str, args: Token, made: Sequence[Tensor] = (), *, effect: bool) -> Result:
        """Add an entry; the tensors that it made have it as their origin from now on."""
        number = len(self.record.entries)
        modes = (
            ("gradients", torch.is_grad_enabled()),
            ("autocast", *(torch.is_autocast_enabled(k) and torch.get_autocast_dtype(k) for k in KINDS)),
            ("inference", torch.is_inference_mode_enabled()),
        )
        entry = Entry(name, args, modes, user_line(), effect, frozenset(results(args)))
        self.record.entries.append(entry)
        for index, tensor in enumerate(made):
            self.origins.made(tensor, Result(number, index))
        return Result(number, -1)

    def restore(self) -> None:
        """Put back the contents of every tensor that was written and that was not made here."""
        with torch.no_grad():
            for tensor, before in self._saved.values():
                tensor.copy_(before)

    def _save(self, tensor: Tensor) -> None:
        place = self.origins.address(tensor)
        if place and not self.origins.is_fresh(tensor) and place not in self._saved:
            with self.origins.pause(), torch.no_grad():
                whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                whole.set_(tensor.untyped_storage())  # all of the memory, not just what is seen of it
                self._saved[place] = (whole, whole.clone())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, origins = kwargs or {}, self.origins
        if origins.paused:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        written = _written(func, args, kwargs)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        plain = not drawn and self._only_numbers(args, kwargs)
        for tensor in written:
            self._save(tensor)
        tokens: Token = None
        if not plain:
            whose = tuple("fresh" if origins.is_fresh(t) else "kept" for t in written)
            tokens = origins.token(args), origins.token(kwargs), whose
        resized = written if name in _RESIZED else []
        places = [(origins.address(t), t.untyped_storage().nbytes()) for t in resized]
        # what stands for a closed module's result need not be what the forward wants of it
        result = None if name == "_assert_async" else func(*args, **kwargs)
        for tensor, (place, size) in zip(resized, places, strict=True):
            origins.moved(tensor, place)
            self._clear_behind(tensor, size)
        made = [t for t in _tensors(result) if not any(t is w for w in written)]
        if plain:
            self._made_of_numbers(name, [*made, *resized])
            return result
        asked = name in _NUMBERS and not self._is_certain(tokens) and not in_message()
        effect = bool(written) or drawn or asked
        entry = self.add(str(func), tokens, made, effect=effect)
        for tensor in written:
            origins.written(tensor, entry)
        return result

    def _only_numbers(self, args: Any, kwargs: Any) -> bool:
        """Whether nothing but plain numbers goes into an operation: not even an empty tensor of the model's."""
        return all(map(self.origins.is_plain, _tensors((args, kwargs))))

    def _made_of_numbers(self, name: str, made: list[Tensor]) -> None:
        for tensor in made:
            self.origins.made_of_numbers(tensor)
            if name in _EMPTY:  # whatever lay there, the same in every run
                with self.origins.pause():
                    tensor.zero_()

    def _clear_behind(self, tensor: Tensor, size: int) -> None:
        """Of memory that was made longer, whatever lay there: the same in every run, as of an empty tensor."""
        if tensor.is_meta:
            return
        with self.origins.pause(), torch.no_grad():
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            whole.set_(tensor.untyped_storage())
            whole[size:].zero_()

    def _is_certain(self, tokens: Token) -> bool:
        """Whether Python asks for ``torch.rand(...) < number`` where no draw from [0, 1) makes a difference."""
        compared = self._made_by(tokens[0][0])
        if compared is None or compared.name != "aten.lt.Scalar":
            return False
        draw, bound = compared.args[0]
        made = self._made_by(draw)
        while made is not None and made.name == "aten.detach.default":
            made = self._made_by(made.args[0][0])
        return made is not None and made.name == "aten.rand.default" and not 0 < float(bound[1]) < 1

    def _made_by(self, token: Token) -> Entry | None:
        return self.record.entries[token.entry] if isinstance(token, Result) else None


class _Functions(TorchFunctionMode):
    """Notes the few functions of a tensor that are dispatched as no operation."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._recorder.origins.paused:
            if func is Tensor.__bool__:  # a check of the data as in the graph
                return truth_as_assertion(func, args[0])
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        record, origins = self._recorder.record, self._recorder.origins
        name, what = getattr(func, "__name__", ""), ""
        given = list(args)
        if name in ("__set__", "__delete__"):
            name = (resolve_name(func) or "").split(".")[-2]
            if name in _SET:
                what = name if name == "requires_grad" else f"set {name}"
        elif name == "requires_grad_":
            what = "requires_grad"
            given = [args[0], args[1] if len(args) > 1 else kwargs.get("requires_grad", True)]
        elif name in _CHANGES or (name == "tolist" and not origins.is_plain(args[0])):  # as `item`, of many
            what = name
        elif name in _UNSEEN and args and isinstance(args[0], Tensor) and not origins.is_plain(args[0]):
            said = f"Tensor.{name} hands its numbers to other code than torch's{user_line()}"
            record.unseen = record.unseen or said
        if what:
            self._recorder.add(what, origins.token(given), effect=True)


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes into."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        said = argument.alias_info is not None and argument.alias_info.is_write
        if said or argument.name in _WRITTEN_UNSAID:
            found += _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found
