"""Batches of a data set's images: from the device, where the set fits; otherwise gathered ahead of their use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from graphaug.errors import ConfigError

RESIDENT = ("auto", "always", "never")
"""Whether images are kept on the device; ``auto``: where they fit."""

SHARE = 0.5
"""The share of a GPU's free memory that images may take: the rest is for what a step needs."""

WORKERS = 4
"""Threads that gather a batch: each waits for pages of the file most of the time."""


class Resident:
    """Images on the device. On the CPU nothing is copied, and a mapped file stays one."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images.to(device)
        self.index_device = self.images.device

    def __call__(self, rows: Tensor, ahead: Tensor | None = None) -> Tensor:
        """The images of these rows; ``ahead`` is of no interest here."""
        return self.images[rows]


class Streamed:
    """Images that are gathered in memory by threads and copied to the device, while the step before is computed.

    Nothing random happens here: which rows are wanted is the caller's affair, and a batch that was gathered for nothing
    leaves no trace.
    """

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self.device = images, device
        self.index_device = images.device
        self.pool = ThreadPoolExecutor(WORKERS, "graphaug-rows")
        self.coming: _Batch | None = None

    def __call__(self, rows: Tensor, ahead: Tensor | None = None) -> Tensor:
        """The images of these rows on the device; ``ahead`` are probably the next ones to be asked for."""
        batch, self.coming = self.coming, None
        if batch is None or not torch.equal(batch.rows, rows):
            batch = _Batch(self.images, rows, self.device, self.pool)
        if ahead is not None:
            self.coming = _Batch(self.images, ahead, self.device, self.pool)
        return batch.gathered().to(self.device, non_blocking=True)


class _Batch:
    """Rows that are being gathered."""

    def __init__(self, images: Tensor, rows: Tensor, device: torch.device, pool: ThreadPoolExecutor) -> None:
        self.rows = rows
        # A copy to the GPU runs beside the host's work only from pinned memory.
        pinned = device.type == "cuda"
        self.images = torch.empty((len(rows), *images.shape[1:]), dtype=images.dtype, pin_memory=pinned)
        size = -(-len(rows) // WORKERS)
        parts = zip(rows.split(size), self.images.split(size), strict=True)
        self.parts: list[Future[Tensor]] = [
            pool.submit(torch.index_select, images, 0, part, out=place) for part, place in parts
        ]

    def gathered(self) -> Tensor:
        """The images, when all are there."""
        for part in self.parts:
            part.result()
        return self.images


def image_rows(images: Tensor, device: torch.device, resident: str = "auto") -> Resident | Streamed:
    """Images ``(N, …)`` for batches on ``device``, kept there or streamed; ``resident`` is one of `RESIDENT`.

    Raises:
        ConfigError: they are always to be kept there, and do not fit.

    """
    if resident == "auto":
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        resident = "always" if free is None or images.nbytes <= SHARE * free else "never"
    if resident == "never":
        return Streamed(images, device)
    try:
        return Resident(images, device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the images, {images.nbytes / 2**30:.1f} GiB, do not fit on {device}: resident='auto' streams them then."
        ) from error
