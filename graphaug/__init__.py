"""Deep Augmentation for any PyTorch model, by surgery on its graph."""

from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.drawn import Drawn
from graphaug.augment.transform import Context, Needs, Transform
from graphaug.augment.transforms.call import Call
from graphaug.augment.transforms.drop import Dropout
from graphaug.augment.transforms.mix import Mix, mixed_cross_entropy
from graphaug.augment.transforms.noise import Noise
from graphaug.augment.transforms.pca import PCA
from graphaug.augment.transforms.policy import Policy
from graphaug.augment.transforms.statistics import Statistics
from graphaug.augment.transforms.steer import Add, Replace
from graphaug.augment.transforms.tokens import Tokens
from graphaug.errors import GraphaugError
from graphaug.rewrite import rewrite, strip
from graphaug.sites import Site, Sites, sites
from graphaug.skip import skip_rows
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Plan
from graphaug.tap import tap
from graphaug.verify import Verification, verify
from graphaug.weights import PerturbedWeights, perturb_weights

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "Add",
    "AugmentedModule",
    "Call",
    "Context",
    "DeepAugment",
    "Drawn",
    "Dropout",
    "GraphaugError",
    "Mix",
    "Needs",
    "Noise",
    "PerturbedWeights",
    "Plan",
    "Policy",
    "Replace",
    "Site",
    "Sites",
    "Statistics",
    "Tokens",
    "Transform",
    "Verification",
    "mixed_cross_entropy",
    "perturb_weights",
    "rewrite",
    "sites",
    "skip_rows",
    "strip",
    "tap",
    "verify",
]
