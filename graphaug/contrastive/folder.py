"""Images in folders, one folder a class: torchvision's ImageFolder layout, read into memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from graphaug.errors import DataError, did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image, as for torchvision's ImageFolder; other files are not looked at."""

SHOWN = 5
"""How many unreadable files an error names; the rest are counted."""


def split_roots(path: Path) -> tuple[Path, Path | None]:
    """The folders of the training and the test set below ``path``.

    ``PATH/train/CLASS/…`` with ``PATH/test/…`` or ``PATH/val/…`` gives two; ``PATH/CLASS/…`` gives ``path`` and None.

    Raises:
        DataError: there is no such folder.

    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"data folder {str(path)!r} {what}.{did_you_mean(path.name, siblings)}")
    if (path / "train").is_dir():
        for name in ("test", "val"):
            if (path / name).is_dir():
                return path / "train", path / name
    return path, None


def read_folder(
    root: Path, size: int, strict: bool
) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
    """Read ``root/CLASS/…`` in the order of names.

    Images are converted to RGB, the shorter side is resized to ``size`` pixels, and the centre is cut out.

    Returns:
        ``(N, 3, size, size)`` uint8 images, ``(N,)`` labels, the class names, and "path: reason" for each skipped file.

    Raises:
        DataError: no class folders, no readable image in one of them, or an unreadable image while ``strict``.

    """
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    if not classes:
        raise DataError(
            f"{str(root)!r} holds no class folders: images are expected in {root}/CLASS/, one folder a class."
        )
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    skipped: list[str] = []
    for label, name in enumerate(classes):
        before = len(arrays)
        for file in sorted((root / name).rglob("*")):
            if file.suffix.lower() not in EXTENSIONS or not file.is_file():
                continue
            try:
                arrays.append(read_image(file, size))
                labels.append(label)
            except DataError as error:
                skipped.append(str(error))
        if len(arrays) == before and not (strict and skipped):
            why = f" All {len(skipped)} could not be read: {_some(skipped)}." if skipped else ""
            raise DataError(f"{str(root / name)!r} holds no readable image.{why}")
    if strict and skipped:
        raise DataError(
            f"{len(skipped)} unreadable image(s): {_some(skipped)}. Without strict they are skipped."
        )
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels), classes, tuple(skipped)


def read_image(file: Path, size: int) -> np.ndarray:
    """One image as ``(size, size, 3)`` uint8; raises ``DataError`` "path: reason" if it cannot be decoded."""
    try:
        with Image.open(file) as opened:
            image = _to_rgb(opened)
            return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    # Decoders raise a zoo of exceptions on broken files; none of them may end a run of hours.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: {str(error) or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: conversion alone would clip everything above 255
        return Image.fromarray(
            (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if image.mode == "P":  # a palette with transparency warns unless it goes through RGBA
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _some(skipped: list[str]) -> str:
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return "; ".join(skipped[:SHOWN]) + more
