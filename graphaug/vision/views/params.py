"""What is drawn for the views of a batch: a crop, colours and the rest, one row for each view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewParams:
    """What was drawn for B views; every tensor has B rows.

    ``top``, ``left``, ``height``, ``width``: the crop in pixels. ``flip``, ``gray``, ``solarize``: booleans.
    ``brightness``, ``contrast``, ``saturation``: factors; ``hue``: a shift in turns, [-0.5, 0.5]; the neutral values
    1 and 0 where jitter was not applied. ``order``: ``(B, 4)``, the sequence of operations, 0 to 3 for brightness,
    contrast, saturation, hue. ``sigma``: of the blur in pixels, 0 for none.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor

    @classmethod
    def of_whole_images(cls, count: int, height: int, width: int) -> ViewParams:
        """What leaves ``count`` images of ``height`` × ``width`` whole and as they are."""
        zero, none = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        return cls(
            top=zero,
            left=zero,
            height=zero + height,
            width=zero + width,
            flip=none,
            brightness=zero + 1,
            contrast=zero + 1,
            saturation=zero + 1,
            hue=zero,
            order=torch.arange(4).repeat(count, 1),
            gray=none,
            sigma=zero,
            solarize=none,
        )

    def columns(self) -> list[Tensor]:
        """The tensors in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def split(self, size: int) -> list[ViewParams]:
        """The same in parts of ``size`` views, in order."""
        columns = [column.split(size) for column in self.columns()]
        return [ViewParams(*part) for part in zip(*columns, strict=True)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What was drawn for each view, as plain numbers by name."""
        columns = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
