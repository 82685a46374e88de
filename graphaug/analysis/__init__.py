"""Which layer to augment, and what it did: CKA, geometry of embeddings, dissection, advice, report.

May import: everything but `graphaug.recipes` and the command line. Nothing below it knows it.
"""

from graphaug.analysis.advise import Advice, Suggestion, advise
from graphaug.analysis.cka import CKA, cka
from graphaug.analysis.dissection import Dissection, dissect
from graphaug.analysis.geometry import (
    Geometry,
    alignment,
    effective_rank,
    embedding_std,
    geometry,
    pair_geometry,
    site_embeddings,
    tolerance,
    uniformity,
)
from graphaug.analysis.segments import Stretch, stretches

__all__ = [
    "CKA",
    "Advice",
    "Dissection",
    "Geometry",
    "Stretch",
    "Suggestion",
    "advise",
    "alignment",
    "cka",
    "dissect",
    "effective_rank",
    "embedding_std",
    "geometry",
    "pair_geometry",
    "site_embeddings",
    "stretches",
    "tolerance",
    "uniformity",
]
