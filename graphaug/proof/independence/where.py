"""Where rows meet, for a message: the user's line, and the innermost module whose forward is running."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping

from torch import fx, nn

from graphaug.capture.user_code import is_internal
from graphaug.capture.values import describe
from graphaug.proof.independence.places import Meeting, Meets


def located(met: Meets, op: str, paths: Mapping[int, str]) -> Meeting:
    """What a rule said, with the place in the code that is running.

    Args:
        met: what it said.
        op: the operation, as torch names it.
        paths: where a module lies, by its id.
    """
    line, module = "", ""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not (line and module):
        name, node = frame.f_code.co_filename, None
        if frame.f_code.co_name == "__call__" and is_internal(name):
            node = frame.f_locals.get("node")
        if isinstance(
            node, fx.Node
        ):  # of opened code there is the graph; what lies further out is no model's
            module = module or str(node.meta.get("site") or describe(node)).removesuffix("@0")
            break
        if not line and not is_internal(name):
            line = f" ({name.rpartition('/')[2]} line {frame.f_lineno})"
        if not module and frame.f_code.co_name != "__torch_dispatch__":
            module = paths.get(id(frame.f_locals.get("self")), "")
        frame = frame.f_back
    return Meeting(met.kind, op, met.why, module, line)


def module_paths(model: nn.Module) -> dict[int, str]:
    """Where every module lies, by its id."""
    return {id(m): path for path, m in model.named_modules() if path}
