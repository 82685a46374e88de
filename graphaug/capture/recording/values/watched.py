"""Dicts among the inputs that note what opened code asks of them: what it does not, the graph does not rely on."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, KeysView, Mapping
from typing import Any

import torch

Asked = tuple[bool, tuple[tuple[Any, Any], ...]]
"""What was asked of a dict: whether its keys were gone through, and for each key that was asked for how: True, its
value was taken; False, whether it is there; or what was asked of the dict that is its value."""

# by their place: models of our own, in other rooms, are opened code like any other
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


class Watched(dict[Any, Any]):
    """A dict, as opened code gets it. What looks at it from any code but that of capture is noted.

    Made by `watched`; to whoever makes another of its type it is a plain dict.
    """

    __slots__ = ("_asked", "_listed", "_whole")
    _asked: dict[Any, bool]
    _listed: bool
    _whole: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A plain dict."""
        return dict(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # as libraries compare it
        return dict

    def note_whole(self) -> None:
        """Note that all of it was handed to code that is not seen."""
        self._whole = True
        for value in dict.values(self):
            if isinstance(value, Watched):
                value.note_whole()

    def asked(self) -> Asked | None:
        """What was asked of it; None if it was all that it holds."""
        if self._whole:
            return None
        found = []
        for key, taken in self._asked.items():
            value = dict.get(self, key)
            inner = value.asked() if isinstance(value, Watched) else None
            found.append((key, inner if taken and inner is not None else taken))
        return self._listed, tuple(found)

    def _note(self, key: Any, taken: bool) -> None:
        if _is_seen():
            if type(key) in (str, int):
                self._asked[key] = taken or self._asked.get(key, False)
            else:  # no node can hold it
                self.note_whole()

    def _note_keys(self) -> None:
        if _is_seen():
            self._listed = True

    # --- one key --------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        self._note(key, taken=True)
        return dict.__getitem__(self, key)

    def get(self, key: Any, default: Any = None) -> Any:
        """As of a dict."""
        self._note(key, taken=True)
        return dict.get(self, key, default)

    def __contains__(self, key: Any) -> bool:
        self._note(key, taken=False)
        return dict.__contains__(self, key)

    # --- its keys -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        self._note_keys()
        return dict.__iter__(self)

    def __reversed__(self) -> Iterator[Any]:
        self._note_keys()
        return dict.__reversed__(self)

    def __len__(self) -> int:
        self._note_keys()
        return dict.__len__(self)

    def note_length(self) -> None:
        """Note that opened code asked how many entries it has."""
        self._listed = True

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        """As of a dict; through the view there is no way to the values."""
        self._note_keys()
        return dict.fromkeys(dict.keys(self)).keys()

    # --- all of it ------------------------------------------------------------------------------

    def __copy__(self) -> dict[Any, Any]:
        self.note_whole()
        return _plain(self)

    def copy(self) -> dict[Any, Any]:
        """As of a dict."""
        self.note_whole()
        return _plain(self)

    def __deepcopy__(self, memo: Any) -> dict[Any, Any]:
        self.note_whole()
        return copy.deepcopy(_plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.note_whole()
        return dict, (_plain(self),)


def _is_seen() -> bool:
    return not sys._getframe(3).f_code.co_filename.startswith(_OURS)


def _whole(name: str) -> Callable[..., Any]:
    original: Any = getattr(dict, name)

    def method(self: Watched, *args: Any, **kwargs: Any) -> Any:
        if not sys._getframe(1).f_code.co_filename.startswith(_OURS):
            self.note_whole()
        return original(self, *args, **kwargs)

    return method


_ALL = ("values", "items", "__eq__", "__ne__", "__repr__", "__or__", "__ror__")
_CHANGES = (
    *("__setitem__", "__delitem__", "__ior__"),
    *("pop", "popitem", "setdefault", "update", "clear"),
)
"""A dict that is changed is not what the caller gave: it is relied on as a whole."""
for _name in (*_ALL, *_CHANGES):
    setattr(Watched, _name, _whole(_name))


def _plain(value: Watched) -> dict[Any, Any]:
    return {key: dict.__getitem__(value, key) for key in dict.keys(value)}


def watched(value: Mapping[Any, Any]) -> Watched:
    """A dict that notes what is asked of it, with the same entries."""
    made: Watched = dict.__new__(Watched)
    dict.update(made, value)
    made._asked, made._listed, made._whole = {}, False, False
    return made


def _flattened(value: Watched) -> tuple[list[Any], list[Any]]:
    value.note_whole()
    return [dict.__getitem__(value, key) for key in dict.keys(value)], list(dict.keys(value))


def _together(values: Any, keys: Any) -> dict[Any, Any]:
    return dict(zip(keys, values, strict=True))


torch.utils._pytree.register_pytree_node(Watched, _flattened, _together)
