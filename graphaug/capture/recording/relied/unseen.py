"""Objects whose state nothing here can compare: of classes of Python's and of extensions, each with ways of its own."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import inspect
import io
import logging
import numbers
import pathlib
import random
import re
import types
import typing
import uuid
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from graphaug.capture.recording.relied.classes import is_of_a_library
from graphaug.capture.recording.relied.facts import PLAIN

_FIXED: tuple[Any, ...] = (
    *(*PLAIN, float, complex, bytes, type(...), range, slice, types.CodeType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.finfo, torch.iinfo),
    *(enum.Enum, numbers.Number, decimal.Decimal, fractions.Fraction, np.generic, np.dtype, np.ufunc),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, uuid.UUID, pathlib.PurePath),
    *(re.Pattern, re.Match, inspect.Signature, inspect.Parameter),
    *(types.GenericAlias, types.UnionType, typing.TypeVar),
    *(types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType),
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, property, classmethod, staticmethod, functools.cached_property),
)
"""Types whose values stay as they are made."""
_ELSEWHERE: tuple[Any, ...] = (
    *(torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
    *(Iterator, types.CoroutineType, functools._lru_cache_wrapper),
    *(type(torch.ops.aten.add), type(torch.ops.aten.add.Tensor), torch.jit.ScriptFunction),
)
"""Types that a capture follows, or refuses, by other ways: what draws, what moves on, and functions."""
_EFFECTS = frozenset(
    {"acquire", "release", "set", "clear", "put", "write", "flush", "close", "append", "reset"}
)
"""Methods that are called for what they do."""
_BY_OPERATORS = ("__len__", "__getitem__", "__contains__", "__bool__")
"""Methods that answer where no code names them."""
_OF_LOGGERS = frozenset({"level", "disabled", "handlers", "isEnabledFor", "getEffectiveLevel", "hasHandlers"})
"""What code can ask a logger; everything else of it only writes."""


def may_answer(name: str, value: Any, names: AbstractSet[str], pairs: AbstractSet[tuple[str, str]]) -> bool:
    """Whether code that names these attributes may ask an object what nothing can compare from call to call.

    Args:
        name: what code calls it.
        value: an object whose attributes are not watched.
        names: attributes that code reads, of whatever object.
        pairs: each with the name of what it is read off.
    """
    lines = isinstance(value, io.IOBase)  # a file, which is an iterator, too
    if isinstance(value, (*_FIXED, *_ELSEWHERE)) and not lines:
        return False
    if isinstance(value, logging.Filterer):
        theirs = not isinstance(value, logging.Logger) or is_of_a_library(
            value.name
        )  # which ask what to print
        return not theirs and any((name, asked) in pairs for asked in _OF_LOGGERS)
    if any(hasattr(type(value), operator) for operator in _BY_OPERATORS):
        return True
    return any(asked in names and not asked.startswith("__") for asked in set(dir(value)) - _EFFECTS)
