"""From image files to pixels of one size, in threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from graphaug.errors import DataError

AT_A_TIME = 256
"""How many images are decoded ahead of the one that is asked for: what bounds the memory."""


def decoded(files: Sequence[Path], size: int) -> Iterator[np.ndarray | DataError]:
    """Each file in its turn as `read_image` gives it, or the error that it raises."""

    def read(file: Path) -> np.ndarray | DataError:
        try:
            return read_image(file, size)
        except DataError as error:
            return error

    # Threads are enough: the decoders and the resizing do not hold the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), AT_A_TIME):
            yield from pool.map(read, files[start : start + AT_A_TIME])


def read_image(file: Path, size: int) -> np.ndarray:
    """One image as ``(3, size, size)`` uint8: RGB, the shorter side resized to ``size``, the centre cut out.

    Raises:
        DataError: "path: reason", if it cannot be decoded.

    """
    # Not by torchvision.io: its pixels of a JPEG are the same, it is no faster, and it is deprecated since 0.29.
    try:
        with Image.open(file) as opened:
            image = ImageOps.fit(_to_rgb(opened), (size, size), Image.Resampling.BILINEAR)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    # Decoders raise a zoo of exceptions on broken files; none of them may end a run of hours.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: {str(error) or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(
            f"pixels of mode {image.mode} (32 bits) have no range that is known: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16 bits: conversion alone would clip everything above 255
        return Image.fromarray(
            (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if image.mode == "P":  # a palette with transparency warns unless it goes through RGBA
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
