"""The group of two processes that a test starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def group_of_two(rank: int, folder: str | Path) -> Iterator[None]:
    """Join the group, and end this process behind it.

    It ends without taking Python down: threads of torch that are still there can abort it then (pytorch/pytorch
    issue 190489), long after all was saved that the test asks for.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{Path(folder) / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
    os._exit(0)
