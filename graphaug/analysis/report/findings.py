"""What the report shows of a run, as plain values, and how it speaks of runs on images and on text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from graphaug.analysis.advise import Advice
from graphaug.analysis.dissection import Dissection
from graphaug.analysis.geometry import Geometry
from graphaug.analysis.report.read import Run


@dataclass(frozen=True)
class Words:
    """How the report speaks of a kind of run.

    Attributes:
        time: what the time of a measurement is counted in.
        samples: what was looked at.
        score: of a measurement, as the axis of its curve and as the head of its column.
        scored, plane: captions of the curves, and of the plane.
        digits, unit: that a score is shown with, times 100.
    """

    time: str
    samples: str
    score: tuple[str, str]
    scored: str
    plane: str
    digits: int
    unit: str

    def shown(self, score: float | None) -> str:
        """A score as the tables have it."""
        return "–" if score is None else f"{100 * score:.{self.digits}f}{self.unit}"


IMAGES = Words(
    "epoch",
    "test images",
    ("kNN accuracy (%)", "kNN"),
    "nearest-neighbour accuracy (of the analysed test images, from 2,000 of its training images at most)",
    "features of two views of each test image",
    1,
    " %",
)

TEXT = Words(
    "step",
    "sentences",
    ("Spearman on STS-B dev (×100)", "STS-B dev"),
    "Spearman's correlation on STS-B's development set (×100)",
    "positive pairs and all sentences of STS-B's development set",
    2,
    "",
)


@dataclass(frozen=True)
class Measurement:
    """An encoder at one time; what was not measured then is None.

    Attributes:
        time: epochs, or steps, that it was trained for.
        alignment, uniformity, std, rank: of the features of two views, and of one, as in `Geometry`; of sentences, of
            STS-B's positive pairs, and of all sentences.
        dimensions: of the features.
        score: accuracy of nearest neighbours in [0, 1], or Spearman's correlation on STS-B in [-1, 1]; None without
            labels.
        tolerance: None without labels, or where no class is there twice.
        sites: geometry at every compared site.
    """

    time: int
    alignment: float
    uniformity: float
    std: float | None = None
    rank: float | None = None
    dimensions: int | None = None
    score: float | None = None
    tolerance: float | None = None
    sites: tuple[Geometry, ...] = ()

    @classmethod
    def of(cls, time: int, own: Geometry, score: float | None, sites: tuple[Geometry, ...]) -> Measurement:
        """Of the geometry of the features, and of that of every site."""
        return cls(
            time,
            own.alignment,
            own.uniformity,
            own.std,
            own.rank,
            own.dimensions,
            score,
            own.tolerance,
            sites,
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation times √D, 1 on the sphere."""
        return None if self.std is None or self.dimensions is None else self.std * math.sqrt(self.dimensions)


@dataclass(frozen=True)
class LayerFindings:
    """What the report shows of a run's layers.

    Attributes:
        augmented: sites that were augmented in training, by name; those in the head too.
        cuts: such of them as are compared, as the CKA matrix names them.
        advice: with the CKA matrix and its stretches.
        dissection: of the run's own augmentation on a batch; None for a run without one.
        undissected: why a run with an augmentation has no dissection.
    """

    augmented: tuple[str, ...]
    cuts: tuple[str, ...]
    advice: Advice
    dissection: Dissection | None
    undissected: str


@dataclass(frozen=True)
class RunAnalysis(LayerFindings):
    """Everything the report shows of a run.

    Attributes:
        run: the run.
        words: of its kind.
        spectrum: singular values of the centred features, the largest first, as shares of their sum.
        measurements: at every snapshot and at the end.
        scores: what the run itself says of its end, in the units of a measurement's score, by name.
        samples: how many samples were looked at.
    """

    run: Run
    words: Words
    spectrum: Tensor
    measurements: list[Measurement]
    scores: dict[str, float | None]
    samples: int

    @property
    def sites(self) -> tuple[Geometry, ...]:
        """Geometry at every compared site at the end of training."""
        return self.measurements[-1].sites
