"""Whether compiled code notices a change, by torch's own compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def check_noticed_when_compiled(aug: Any, x: Any, change: Callable[[Any], Any]) -> None:
    """The step is compiled once, until the original is changed: then a call is refused."""
    torch._dynamo.reset()
    fast = torch.compile(aug, fullgraph=True, backend="eager")
    fast(x).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        fast(x)
    change(aug.original)
    with pytest.raises(Exception, match=r"Observed exception|Call rewrite again"):
        fast(x)
    torch._dynamo.reset()
