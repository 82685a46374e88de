"""Deep Augmentation for any PyTorch model, by surgery on its graph."""

from graphaug.augment.deep_augment import DeepAugment
from graphaug.errors import GraphaugError
from graphaug.rewrite import rewrite, strip
from graphaug.sites import Site, Sites, sites
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Plan
from graphaug.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "AugmentedModule",
    "DeepAugment",
    "GraphaugError",
    "Plan",
    "Site",
    "Sites",
    "Verification",
    "rewrite",
    "sites",
    "strip",
    "verify",
]
