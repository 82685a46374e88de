"""Where in the user's own code something happened: for messages that name a file and a line."""

from __future__ import annotations

import os
import sys
import types

import torch


def user_line() -> str:
    """`` (file.py line 12)`` of the innermost running frame that is neither torch's nor ours."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if not is_internal(frame.f_code.co_filename):
            return f" ({frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno})"
        frame = frame.f_back
    return ""


def is_internal(filename: str) -> bool:
    """Whether a file is torch's, ours, or plumbing of the standard library."""
    return filename.startswith(("<", *_PACKAGES)) or filename.endswith(_PLUMBING)


# by their place, not by name: a checkout of this project may well lie in a directory called graphaug
_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = tuple(
    folder + os.sep for folder in (os.path.dirname(str(torch.__file__)), os.path.dirname(_HERE))
)
_PLUMBING = ("/contextlib.py", "/functools.py", "/inspect.py")
