"""Deep Augmentation for any PyTorch model, by surgery on its graph."""

from graphaug.deep_augment import DeepAugment
from graphaug.errors import GraphaugError
from graphaug.module import AugmentedModule
from graphaug.plan import Plan
from graphaug.rewrite import rewrite, strip
from graphaug.sites import Site, Sites, sites
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
