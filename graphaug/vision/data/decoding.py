"""From image files to pixels of one size, in threads."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from graphaug.errors import DataError
from graphaug.terminal.printable import printable

AT_A_TIME = 256
"""How many images are decoded ahead of the one that is asked for: what bounds the memory."""


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what turns each upright."""


def decoded(files: Sequence[Path], size: int, orient: bool = True) -> Iterator[np.ndarray | DataError]:
    """Each file in its turn as `read_image` gives it, or the error that it raises."""

    def read(file: Path) -> np.ndarray | DataError:
        try:
            return read_image(file, size, orient)
        except DataError as error:
            return error

    # Threads are enough: the decoders and the resizing do not hold the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), AT_A_TIME):
            yield from pool.map(read, files[start : start + AT_A_TIME])


def read_image(file: Path, size: int, orient: bool = True) -> np.ndarray:
    """One image as ``(3, size, size)`` uint8: RGB, the shorter side resized to ``size``, the centre cut out.

    Args:
        file: the image.
        size: in pixels.
        orient: turn it as its EXIF orientation says, as viewers do; False leaves it as torchvision's ImageFolder does.

    Raises:
        DataError: "path: reason", if it cannot be decoded.

    """
    # Not by torchvision.io: its pixels of a JPEG are the same, it is no faster, and it is deprecated since 0.29.
    try:
        with Image.open(file) as opened:
            image = to_rgb_image(_upright(opened) if orient else opened, opened.format)
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    # Decoders raise a zoo of exceptions on broken files; none of them may end a run of hours.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(printable(f"{file}: {str(error) or type(error).__name__}")) from error


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; as it is if that is missing, or cannot be read."""
    image.load()  # PIL turns a TIFF while it loads it, and then forgets its orientation
    try:
        found: Any = image.getexif().get(ExifTags.Base.Orientation)
        turn = _UPRIGHT.get(found)
    # A decoder of metadata raises as much of a zoo as those of pixels; the pixels are there, and are shown by viewers.
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error):
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb_image(image: Image.Image, file_format: str | None) -> Image.Image:
    """The image in RGB, one of 16 bits by their upper eight; ``file_format`` is PIL's name of where it is from.

    Raises:
        ValueError: pixels of 32 bits, which have no range.
    """
    if image.mode == "F" or (image.mode == "I" and file_format != "PNG"):
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
