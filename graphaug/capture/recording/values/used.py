"""Of a value that holds several tensors, those that a graph goes on with."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from graphaug.capture.dataflow import reads_metadata, reads_no_data
from graphaug.capture.recording.values.layouts import TELL
from graphaug.capture.recording.values.structures import is_container
from graphaug.capture.values import UNKNOWN, assume, value_of


def used_entry(node: fx.Node) -> fx.Node:
    """Of a tuple, dict or dataclass the one tensor in it that the graph goes on with; else the node itself.

    An LSTM returns its outputs beside its states, attention its weights beside what it attended to; most forwards go
    on with one of them and drop the others.
    """
    entry = node
    while holds_others(entry):
        users = [user for user in entry.users if not ends(user)]
        if len(users) != 1 or not is_entry(users[0], entry):
            return node
        entry = users[0]
    return entry if isinstance(value_of(entry), Tensor) or value_of(entry) is UNKNOWN else node


def holds_others(node: fx.Node) -> bool:
    """Whether a node's value is a structure; of one that is not known, whether entries are taken out of it."""
    value = value_of(node)
    return is_container(value) or (value is UNKNOWN and any(is_entry(user, node) for user in node.users))


def is_entry(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is an entry of another, by a name or a number: indexing a tensor is a site of its own."""
    taken = user.target in (operator.getitem, getattr) and user.args[0] is node and "site" not in user.meta
    return taken and isinstance(user.args[1], (str, int))


def ends(node: fx.Node) -> bool:
    """Whether nothing comes of a node: an entry that is not used, a size, or a check of what the graph assumes."""
    if node.op not in ("call_function", "call_method"):
        return False  # a module is called for what it does, too
    if node.target is assume or reads_metadata(node):
        return True
    reading = node.target in (operator.getitem, getattr, *TELL) or reads_no_data(node)
    return reading and all(ends(user) for user in node.users)
