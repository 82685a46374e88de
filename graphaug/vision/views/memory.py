"""Memory for a large result on a CPU that is not paid for page by page."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

FRESH_BYTES = 2**25
"""From how many bytes on glibc takes memory from the system in each call, and gives it back: its largest threshold."""


def empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor; a large one in huge pages, where the system has them.

    The system hands memory out in pages of 4 kB as it is first touched, which for a view of 224 pixels took 0.3 of its
    0.9 milliseconds on a virtual machine; pages of 2 MB take a quarter of that.
    """
    size = 4 * math.prod(shape)
    if size < FRESH_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them: its usual pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
