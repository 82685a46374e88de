"""Data as an analysis takes them: a loader of tensors, tuples or dicts, or one tensor or dict cut into batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import map_tensors
from graphaug.errors import DataError, InvalidOption, an


def batches(model: nn.Module, data: Any, batch_size: int = 256) -> Iterator[Any]:
    """Batches of what ``model`` is called with, on its device.

    Args:
        model: whose forward says what of a batch is its input.
        data: an iterable of batches, or all samples in one tensor or one mapping of tensors. A batch is a tensor; a
            tuple, of which as many entries are taken as the forward requires (so that labels stay out), and a second
            one as the ``attention_mask`` if the forward takes one, requires no other entry than the first at most, and
            the entry has the first one's shape and is 0 or 1 throughout; or a mapping, of which the keys are taken that
            the forward takes.
        batch_size: rows a batch where ``data`` is not in batches yet.

    Yields:
        Tuples of positional inputs or dicts of keyword inputs, as ``example_inputs`` takes them; with an attention
        mask always the latter, so that `padding_mask` finds it.

    Raises:
        DataError: there is no batch, or one is of another type or holds nothing for the forward.
        InvalidOption: ``batch_size`` is no positive whole number.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidOption(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    takes = _Inputs(model)
    count = 0
    for batch in _cut(data, batch_size):
        count += 1
        yield takes(batch)
    if count == 0:
        raise DataError("the data hold no batch: an analysis needs at least one.")


def rows_of(inputs: Any) -> int:
    """How many samples a batch holds: the first dimension of its first tensor."""
    return next((len(t) for t in torch.utils._pytree.tree_leaves(inputs) if _is_batch(t)), 0)


def padding_mask(inputs: Any) -> Tensor | None:
    """The (rows, tokens) mask of a tokenizer's batch, True where there is a token; None if it has none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _cut(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, Tensor):
        yield from data.split(batch_size) if len(data) else ()
    elif isinstance(data, Mapping):
        # torch's trees know dicts, not every mapping: a tokenizer's BatchEncoding is none
        for start in range(0, rows_of(dict(data)), batch_size):
            part = slice(start, start + batch_size)
            yield {k: v[part] if _is_batch(v) else v for k, v in data.items()}
    elif isinstance(data, Iterable) and not isinstance(data, str):
        yield from data
    else:
        raise DataError(
            f"data is {an(data)}: give a loader of batches, or all samples in a tensor or a dict."
        )


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _is_mask(batch: Sequence[Any]) -> bool:
    """Whether the second entry of a batch can be the attention mask of the first."""
    if len(batch) < 2 or not isinstance(batch[1], Tensor) or batch[1].shape != batch[0].shape:
        return False
    mask = batch[1]
    return not (mask.is_floating_point() or mask.is_complex()) and bool(((mask == 0) | (mask == 1)).all())


class _Inputs:
    """Takes from a batch what a forward takes, and brings it to the model's device."""

    def __init__(self, model: nn.Module) -> None:
        parameters = list(inspect.signature(model.forward).parameters.values())
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.name = type(model).__name__
        self.known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.required = sum(p.default is p.empty for p in parameters if p.kind in kinds)
        self.bindable = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        owned = next(iter([*model.parameters(), *model.buffers()]), None)
        self.device = None if owned is None else owned.device

    def __call__(self, batch: Any) -> Any:
        inputs: Any
        if isinstance(batch, Tensor):
            inputs = (batch,)
        elif isinstance(batch, Mapping):
            inputs = {k: v for k, v in batch.items() if k in self.known or self.anything}
            if not inputs:
                raise DataError(
                    f"a batch with {', '.join(map(repr, batch))} holds nothing that {self.name}.forward takes: "
                    f"{', '.join(self.known)}."
                )
        elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (Tensor, Mapping)):
            return self(batch[0]) if isinstance(batch[0], Mapping) else self._placed(self._entries(batch))
        else:
            raise DataError(f"a batch is {an(batch)}: it must be a tensor, a tuple or a dict of them.")
        return self._placed(inputs)

    def _entries(self, batch: Sequence[Any]) -> Any:
        taken = tuple(batch[: max(self.required, 1)])
        names = self.bindable[: len(taken)]
        if "attention_mask" in names:
            return dict(zip(names, taken, strict=True))
        if len(taken) == len(names) == 1 and "attention_mask" in self.bindable and _is_mask(batch):
            return {names[0]: taken[0], "attention_mask": batch[1]}
        return taken

    def _placed(self, inputs: Any) -> Any:
        return inputs if self.device is None else map_tensors(lambda t: t.to(self.device), inputs)
