"""The methods of the table in docs/methods.md: the lines of user code of each, and the formula it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.transforms import formulas as f
from benchmarks.transforms.formulas import Formula

SITE = "1"
PLAIN_USE = "out = aug(x)"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: what it is called.
        source: who published it.
        make: the line that makes ``aug`` of ``model``.
        formula: in words, for the table.
        sites: site → its formula; empty for what is no transform at a site.
        use: what a step does with it; its last line gives ``out``.
        loss: the oracle of ``out`` where that is a loss: of the logits, labels and what was drawn.
    """

    name: str
    source: str
    make: str
    formula: str
    sites: dict[str, Formula] = field(default_factory=dict)
    use: str = PLAIN_USE
    loss: Callable[[Tensor, Tensor, Any], Tensor] | None = None

    @property
    def code(self) -> str:
        """Its lines, without the plain call of a model."""
        return self.make if self.use == PLAIN_USE else f"{self.make}\n{self.use}"


def at_site(name: str, source: str, transform: str, formula: str, oracle: Formula, more: str = "") -> Method:
    """One transform at one site; what it needs of the batch is given in a block."""
    use = PLAIN_USE
    if "source" in more:
        use = "with aug.given(source=source):\n    out = aug(x)"
    elif "class" in transform:
        use = "with aug.given(labels=labels):\n    out = aug(x)"
    options = ", subset=1.0" if "all" in more else ""
    make = f'aug = ga.rewrite(model, "{SITE}", transform={transform}{options})'
    return Method(name, source, make, formula, {SITE: oracle}, use)


MODALS_OPERATIONS = (
    'ga.Policy([ga.Noise(0.1, relative="class"), '
    'ga.Mix("extrapolate", partner="mean", within_class=True), '
    'ga.Mix("interpolate", partner="nearest", within_class=True), ga.Mix("difference", within_class=True)])'
)
LOSS = f'out = ga.mixed_cross_entropy(aug(x), labels, aug.drawn["{SITE}"])'
HEIGHT, MODALS = "DeVries & Taylor 2017", "Cheung & Yeung 2021"

METHODS = (
    at_site(
        "dropout of elements", "Srivastava et al. 2014", "ga.Dropout(0.5)", "h·kept/(1-p)", f.dropped(0.5)
    ),
    at_site(
        "dropout of channels",
        "Tompson et al. 2015",
        'ga.Dropout(0.5, "channel")',
        "h·kept/(1-p), channel by channel",
        f.dropped(0.5, alike=(1,)),
    ),
    at_site(
        "dropout of tokens",
        "Tompson et al. 2015",
        'ga.Dropout(0.5, "position")',
        "h·kept/(1-p), token by token",
        f.dropped(0.5, alike=(2,)),
    ),
    at_site(
        "DropBlock",
        "Ghiasi et al. 2018",
        'ga.Dropout(0.25, "block", block_size=2)',
        "h·kept·all/kept, row by row",
        f.drop_block,
    ),
    at_site(
        "DropHead",
        "Zhou et al. 2020",
        'ga.Dropout(0.25, "head", heads=4)',
        "h·kept/(1-p), head by head",
        f.drop_head,
    ),
    at_site("Gaussian noise", HEIGHT, "ga.Noise(0.1)", "h + σε", lambda r: r.h + 0.1 * r.drawn.noise),
    at_site("uniform noise", "", 'ga.Noise(0.1, "uniform")', "h + σu", lambda r: r.h + 0.1 * r.drawn.noise),
    at_site(
        "noise by the site's spread",
        "",
        'ga.Noise(0.1, relative="site")',
        "h + σ·std(all)·ε",
        f.spread_noise,
    ),
    at_site(
        "noise by a feature's spread",
        HEIGHT,
        'ga.Noise(0.1, relative="feature")',
        "h + σ·std(rows)·ε",
        f.feature_noise,
    ),
    at_site(
        "noise by a class' spread",
        MODALS,
        'ga.Noise(0.1, relative="class")',
        "h + σ·std(class)·ε",
        f.class_noise,
    ),
    at_site(
        "NEFTune",
        "Jain et al. 2023",
        'ga.Noise(5.0, "uniform", "neftune")',
        "h + αu/√(LD)",
        f.neftune,
        "all",
    ),
    at_site("Manifold Mixup", "Verma et al. 2019", "ga.Mix(alpha=2.0)", "λh + (1-λ)h'", f.mixup),
    at_site(
        "Manifold Mixup, one λ",
        "Verma et al. 2019",
        'ga.Mix(alpha=2.0, per="batch")',
        "λh + (1-λ)h'",
        f.mixup,
    ),
    Method(
        "Manifold Mixup with labels",
        "Verma et al. 2019",
        f'aug = ga.rewrite(model, "{SITE}", transform=ga.Mix(alpha=2.0))',
        "the rows' mix, and soft labels",
        {SITE: f.mixup},
        LOSS,
        f.soft_cross_entropy,
    ),
    Method(
        "Manifold Mixup, a layer drawn",
        "Verma et al. 2019",
        'aug = ga.rewrite(model, ["0", "1", "2"], transform=ga.Mix(alpha=2.0), subset=1.0, one_site=True)',
        "the mix at that layer, and soft labels",
        dict.fromkeys(("0", "1", "2"), f.mixup),
        "out = ga.mixed_cross_entropy(aug(x), labels, aug.drawn)",
        f.soft_cross_entropy,
    ),
    at_site(
        "interpolation",
        HEIGHT,
        'ga.Mix("interpolate", partner="nearest", within_class=True)',
        "h + λ(h' - h)",
        f.interpolation,
    ),
    at_site("extrapolation", HEIGHT, 'ga.Mix("extrapolate")', "h + λ(h - h')", f.extrapolation),
    at_site(
        "extrapolation within a class",
        HEIGHT,
        'ga.Mix("extrapolate", partner="nearest", within_class=True, detach=True)',
        "h + λ(h - h'), h' stored",
        f.from_stored,
    ),
    at_site(
        "extrapolation from the mean",
        "",
        'ga.Mix("extrapolate", partner="mean")',
        "h + λ(h - mean)",
        f.from_mean,
    ),
    at_site(
        "extrapolation from a class' mean",
        MODALS,
        'ga.Mix("extrapolate", partner="mean", within_class=True)',
        "h + λ(h - mean of the class)",
        f.from_class_mean,
    ),
    at_site("difference", MODALS, 'ga.Mix("difference", within_class=True)', "h + λ(h' - h'')", f.difference),
    at_site("MODALS", MODALS, MODALS_OPERATIONS, "row by row the operation drawn", f.modals),
    at_site("MixStyle", "Zhou et al. 2021", 'ga.Statistics("mixstyle")', "its formula", f.mixstyle),
    at_site("DSU", "Li et al. 2022", 'ga.Statistics("dsu")', "its formula", f.dsu),
    at_site(
        "first direction removed",
        "Deep Augmentation, later versions",
        "ga.PCA(1)",
        "h - (h-μ)vvᵀ, eigh",
        f.pca(0, False),
    ),
    at_site(
        "last direction removed",
        "Deep Augmentation, later versions",
        'ga.PCA(1, remove="last")',
        "h - (h-μ)vvᵀ, eigh",
        f.pca(-1, False),
    ),
    at_site(
        "first direction of rows, with gradient",
        "Deep Augmentation, the authors' code",
        "ga.PCA(1, gradient=True)",
        "h - (h-μ)vvᵀ, through eigh",
        f.pca(0, False, gradient=True),
    ),
    at_site(
        "first direction of tokens",
        "Deep Augmentation, later versions",
        'ga.PCA(1, over="token")',
        "h - (h-μ)vvᵀ, eigh",
        f.pca(0, True),
    ),
    at_site(
        "last direction of tokens, with gradient",
        "Deep Augmentation, the authors' code",
        'ga.PCA(1, remove="last", over="token", gradient=True)',
        "h - (h-μ)vvᵀ, through eigh",
        f.pca(-1, True, gradient=True),
    ),
    at_site(
        "PatchDropout",
        "Liu et al. 2023",
        "ga.Tokens(0.5)",
        "tokens picked row by row",
        f.patch_dropout,
        "all",
    ),
    at_site("activation addition", "Turner et al. 2023", "ga.Add(vector, scale=4.0)", "h + c·v", f.added),
    at_site(
        "addition at one token",
        "Turner et al. 2023",
        "ga.Add(vector, positions=[-1])",
        "h + v, the last token",
        f.added_at_the_end,
    ),
    at_site(
        "another input's activation added",
        "Turner et al. 2023",
        "ga.Add(scale=0.5)",
        "h + c·h*",
        f.source_added,
        "source",
    ),
    at_site("a vector in place", "Vig et al. 2020", "ga.Replace(vector)", "v", f.replaced),
    at_site(
        "activation patching",
        "Meng et al. 2022",
        "ga.Replace(positions=[0, -1])",
        "h* at the tokens",
        f.patched,
        "source",
    ),
    at_site("any module", "", "torch.nn.Tanh()", "tanh(h)", f.squashed),
    at_site("any function", "", "torch.tanh", "tanh(h)", f.squashed),
    Method(
        "sites of their own",
        "",
        'aug = ga.rewrite(model, {"1": ga.Noise(0.1), "2": ga.Dropout(0.25, "head", heads=4, stop_grad=True)})',
        "both formulas",
        {"1": lambda r: r.h + 0.1 * r.drawn.noise, "2": f.drop_head},
    ),
    Method("deep views", "", f'aug = ga.rewrite(model, "{SITE}", views=2)', "the model on [x; x]"),
    Method(
        "skipped rows",
        "Huang et al. 2016; DINOv2",
        'aug = ga.skip_rows(model, "*.branch", rate=0.4)',
        "masked branches of all rows",
    ),
    Method(
        "moved weights",
        "SimGRACE, Xia et al. 2022",
        "aug = ga.perturb_weights(model, eta=1.0)",
        "a model of those weights",
    ),
    Method(
        "features of layers",
        "",
        f'aug = ga.tap(model, ["{SITE}", "2"])',
        "forward hooks",
        use="out = torch.cat([h.flatten() for h in aug(x).values()])",
    ),
)
