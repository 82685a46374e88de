"""Private names of torch that the library uses, each with what stands in for it in versions that lack it.

Everything else in the package uses torch's public names, and `torch.utils._pytree`, which torch itself documents for
custom containers. Supported: torch 2.11 and later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import source as _dynamo_source
from torch._dynamo.source import ConstantSource
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    unset_fake_temporarily,
)
from torch._subclasses.fake_tensor import FakeTensorMode as _FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.graph_module import _forward_from_src
from torch.jit._state import _try_get_jit_cached_function
from torch.nn import parameter
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.weak import WeakIdKeyDictionary

__all__ = [
    "COMPILES_CONTEXT_VARIABLES",
    "COMPILES_PROPERTIES",
    "BackwardCFunction",
    "ConstantSource",
    "DataDependentOutputException",
    "DimDynamic",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "ShapeEnv",
    "UninitializedTensorMixin",
    "WeakIdKeyDictionary",
    "as_eager",
    "assert_async",
    "compile_lock",
    "dispatch_modes",
    "enter_autocast",
    "exit_autocast",
    "flop_counter_type",
    "function_from_source",
    "function_modes",
    "graph_without",
    "is_functorch_wrapper",
    "quiet_fakes",
    "scripted_from",
    "sequence_number",
    "set_grad_enabled",
    "settable_backends",
    "storage_of",
    "symbolic_operations",
    "takes_over",
    "unsharded",
    "without_fakes",
]

COMPILES_CONTEXT_VARIABLES = hasattr(_dynamo_source, "ContextVarGetSource")
"""Whether torch's compiler reads a `contextvars.ContextVar`, and compiles anew for another value; 2.11 cannot."""

COMPILES_PROPERTIES = COMPILES_CONTEXT_VARIABLES
"""Whether it reads an attribute that holds a property; 2.11 cannot, and the first that can is taken to be that one."""

UninitializedTensorMixin: Any = getattr(parameter, "UninitializedTensorMixin")  # noqa: B009  # not in the stubs
"""What a parameter or buffer of a lazy module is before its first call."""

set_grad_enabled = torch._C._set_grad_enabled
"""Sets the grad mode; unlike ``torch.set_grad_enabled`` a plain function, which a graph can hold as one node."""


def enter_autocast(*options: Any) -> Any:
    """Enter ``torch.autocast(device_type, dtype, enabled, cache_enabled)``, as one node of a graph; returns the region.

    Torch has a function for it that exporters know; while they trace, it sets nothing, and dtypes come out otherwise.
    """
    region = torch.autocast(*options)
    region.__enter__()
    return region


def exit_autocast(region: Any) -> None:
    """Leave such a region: what was there before it comes back."""
    region.__exit__(None, None, None)


assert_async = torch._assert_async
"""Raises where a tensor of one entry is false; unlike ``torch._assert`` an operation, which compilers keep."""


class FakeTensorMode(_FakeTensorMode):
    """What makes tensors fake. A copy of a fake tensor is of the same mode, whatever copies it.

    Every fake tensor holds its mode, so that ``copy.deepcopy`` of one would copy the mode with its tables. They hold
    weak references to memory (``StorageWeakRef``), each of which counts as one. Of a copy torch does not know: memory
    is counted down after it was given back, until the process ends by a signal.
    """

    def __copy__(self) -> FakeTensorMode:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeTensorMode:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a fake tensor cannot be pickled")


def function_from_source(source: str, names: dict[str, Any]) -> Any:
    """The function ``forward`` of a generated source; torch keeps the source for tracebacks."""
    return _forward_from_src(source, names, {})


sequence_number: Callable[[], int] = getattr(torch.autograd, "_get_sequence_nr")  # noqa: B009  # not exported
"""The number of the next function of gradients: those that a call makes have numbers from one answer to the next."""

symbolic_operations = enable_python_dispatcher
"""A context in which operations made of others (``matmul``) keep symbolic sizes, which torch 2.11 loses otherwise."""

without_fakes = unset_fake_temporarily
"""A context in which tensors that are made are real, inside of one in which they are fake."""


def storage_of(tensor: Tensor) -> int | None:
    """What tells a tensor's memory from others; None of one that has none of its own, as sparse ones and wrappers."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


@contextlib.contextmanager
def quiet_fakes() -> Iterator[None]:
    """A context in which torch does not log operations that fail on fake tensors: whoever tries them says so."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@functools.cache
def flop_counter_type() -> Any:
    """Torch's ``FlopCounterMode``, which tells of operations that it has no formula for; its import imports triton."""
    from torch.utils.flop_counter import FlopCounterMode

    class Nowhere:
        """In the place of what tells torch's counter in which module it is: its hooks fail without gradients."""

        parents = frozenset({"Global"})

        def __enter__(self) -> Nowhere:
            return self

        def __exit__(self, *_: Any) -> None:
            return

    class Telling(FlopCounterMode):
        without_formula: Callable[[Any], None]

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mod_tracker: Any = Nowhere()

        def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
            if func_packet not in self.flop_registry:
                self.without_formula(func_packet)
            return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]

    return Telling


def scripted_from(function: Any) -> Any:
    """The Python function that ``torch.jit.script`` made one of; None of one that was traced."""
    python = getattr(function, "_torchdynamo_inline", None)
    made = _try_get_jit_cached_function(python) if isinstance(python, types.FunctionType) else None
    return python if made is not None and made.qualified_name == function.qualified_name else None


def takes_over(value: Any) -> bool:
    """Whether a value has a say in the functions of torch that get it, as a subclass of a tensor may have.

    What ``torch.overrides.has_torch_function`` tells of it where no function mode is active; in one it is always true.
    """
    own = getattr(type(value), "__torch_function__", _NO_SAY)
    return type(value) is not torch.Tensor and own is not _NO_SAY


_NO_SAY = torch._C._disabled_torch_function_impl


def is_functorch_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what a transform of torch.func hands to its function."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def function_modes() -> list[Any]:
    """The modes that see torch's functions here, the innermost last, without those that are a default device."""
    return [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]


def dispatch_modes() -> list[Any]:
    """The modes that see torch's operations here, the innermost last, without those that make tensors fake."""
    return [mode for mode in _get_current_dispatch_mode_stack() if not isinstance(mode, _FakeTensorMode)]


def compile_lock() -> contextlib.AbstractContextManager[Any]:
    """What a thread holds while torch's compiler traces its code; nothing if the compiler was never imported."""
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    return getattr(compiler, "compile_lock", None) or contextlib.nullcontext()


def graph_without(name: str) -> fx.Graph:
    """An empty graph in which no node gets a name."""
    graph = fx.Graph()
    graph._graph_namespace.create_name(name, None)
    return graph


settable_backends: Any = getattr(torch.backends, "__allow_nonbracketed_mutation")  # no class mangles it
"""A context in which ``torch.backends`` can be set, also after ``torch.backends.disable_global_flags``."""


def unsharded(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A module's class before `torch.distributed.fsdp.fully_shard`, which makes one of it and of its own."""
    mixed_in, *rest = kind.__bases__
    of_fsdp = mixed_in.__name__ == "FSDPModule" and mixed_in.__module__.startswith("torch.distributed.")
    return rest[0] if of_fsdp and rest else kind


FSDP_MARKS = frozenset({"_is_fsdp_managed_module", "_fsdp_use_orig_params"})
"""What `torch.distributed.fsdp.fully_shard` sets on the modules that it shards; their forwards do not read it."""


@contextlib.contextmanager
def as_eager() -> Iterator[None]:
    """A part of a compilation in which `torch.compiler.is_compiling` says no: it runs as Python, and is not traced.

    Torch 2.11 says so by itself.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
