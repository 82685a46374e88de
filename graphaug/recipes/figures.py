"""The figures and tables of the paper, and which of them a command runs.

What a figure claims is said only where this repository, its issues or the paper's abstract say it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from graphaug.contrastive.config.sites import site
from graphaug.errors import ConfigError, did_you_mean
from graphaug.recipes.methods import graphs as graph_figures
from graphaug.recipes.methods import images as image_figures
from graphaug.recipes.methods import similarity, variants
from graphaug.recipes.methods import text as text_figures
from graphaug.recipes.plan import Figure, graph_settings, text_settings
from graphaug.recipes.runs.kinds import kind_of
from graphaug.recipes.sweep import Sweep

UNKNOWN = "not written down in this repository"

FIGURES: tuple[Figure, ...] = (
    Figure(
        "fig3-4",
        "SimCLR on images: every site, with and without stop-gradient; dropout everywhere",
        "Deep Augmentation is ahead of SimCLR, of dropout everywhere, and deep it is ahead of the input",
        image_figures.sites_and_stops,
        ("fig3", "fig4"),
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "fig5",
        "transfer: encoders of one data set on another, both ways",
        "with Deep Augmentation an encoder serves other data better (asked)",
        image_figures.transfer,
        ("fig30",),
        data=("fashion-mnist", "cifar10"),
        full_data=("cifar100", "cifar10"),
    ),
    Figure("fig6", UNKNOWN, UNKNOWN, missing="it is not known what to run"),
    Figure("fig7", UNKNOWN, UNKNOWN, missing="it is not known what to run"),
    Figure(
        "fig8",
        "SimCSE: an encoder a line, the seven STS tasks",
        "with stop-gradient it is ahead of without, at every block",
        text_figures.on_sentences,
        asks=("a file of sentences", "SentEval's directory with STS/ and SICK/"),
        base=text_settings,
    ),
    Figure(
        "crops",
        "SimCSE beside crops of the sentence, and deep views beside two passes",
        "Deep Augmentation is ahead of crops, and deep views of two passes (asked)",
        text_figures.beside_crops,
        asks=("a file of sentences", "SentEval's directory with STS/ and SICK/"),
        base=text_settings,
    ),
    Figure("fig9-10", UNKNOWN, UNKNOWN, also=("fig9", "fig10"), missing="it is not known what to run"),
    Figure("fig11-12", UNKNOWN, UNKNOWN, also=("fig11", "fig12"), missing="it is not known what to run"),
    Figure(
        "fig13-33",
        f"fig30 is transfer, and runs as fig5; of the others it is {UNKNOWN}",
        UNKNOWN,
        also=tuple(f"fig{n}" for n in range(13, 34) if n != 30),
        missing="it is not known what to run",
    ),
    Figure("fig34", UNKNOWN, UNKNOWN, missing="it is not known what to run"),
    Figure(
        "fig35-37", UNKNOWN, UNKNOWN, also=("fig35", "fig36", "fig37"), missing="it is not known what to run"
    ),
    Figure(
        "stop-star",
        "Stop*: Deep Augmentation that begins with a SimCLR run",
        "begun so, it is ahead of SimCLR that goes on as long (asked)",
        variants.begun_with_simclr,
        ("stop*",),
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "freeze",
        "what lies before the site frozen, or what lies behind it, begun with a SimCLR run",
        "freezing a side is ahead of training all (asked)",
        variants.freezing,
        data=("fashion-mnist",),
        full_data=("cifar100",),
        inner=True,
    ),
    Figure(
        "pairs",
        "rows of both views augmented, or of the first alone: lower-to-higher pairs",
        "these pairs alone are ahead of all (asked)",
        variants.pairs,
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "training",
        "the linear probe over training, at every site",
        "Deep Augmentation is ahead of SimCLR at the end",
        variants.over_training,
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "cka",
        "maps of similarity between layers, by two estimators, with controls",
        "layers are less alike with Deep Augmentation",
        similarity.maps,
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "pca",
        "later versions: PCA as the transform, beside dropout",
        "with PCA too, Deep Augmentation is ahead of SimCLR",
        image_figures.by_pca,
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "supervised",
        "later versions: the same in supervised training",
        "the effects are inverse there",
        image_figures.supervised,
        data=("fashion-mnist",),
        full_data=("cifar100",),
    ),
    Figure(
        "graphs",
        "later versions: contrastive learning on graphs",
        "substantial gains there too",
        graph_figures.on_graphs,
        data=("digits",),
        base=graph_settings,
    ),
)


def find(name: str) -> Figure:
    """The figure of a name.

    Raises:
        ConfigError: there is none, or it cannot be run yet.

    """
    names = {n: figure for figure in FIGURES for n in (figure.name, *figure.also)}
    found = names.get(name)
    if found is None:
        raise ConfigError(
            f"no figure is called {name!r}.{did_you_mean(name, names)} 'graphaug paper' lists them."
        )
    if found.make is None:
        raise ConfigError(f"{name} cannot be run yet: {found.missing}.")
    return found


def listing(width: int = 100) -> str:
    """Every figure with what it shows and claims, and whether it can be run."""
    lines = []
    for figure in FIGURES:
        state = "can be run" if figure.make is not None else f"not yet: {figure.missing}"
        lines.append(f"{figure.name:<10}  {figure.shows}")
        for word, text in (("claims", figure.claims), ("state", state)):
            lines += textwrap.wrap(
                f"{word}: {text}", width, initial_indent=" " * 12, subsequent_indent=" " * 14
            )
    lines += [
        "",
        "graphaug paper FIGURE --out DIR runs one: the table, the picture and a verdict for each claim.",
    ]
    return "\n".join(lines)


def planned(
    name: str,
    out: Path,
    *,
    scale: str = "tiny",
    data: Sequence[str] = (),
    model: str | None = None,
    at: Sequence[str | int] = (),
    epochs: int | None = None,
    images: int | None = None,
    validation: float = 0.0,
    seeds: int = 3,
) -> Sweep:
    """The runs of a figure, not begun.

    Args:
        name: of the figure.
        out: the directory of its runs.
        scale: which of `graphaug.recipes.plan.SCALES`, of graphs `GRAPH_SCALES`, of text `TEXT_SCALES`.
        data: the data sets; by default the figure's.
        model, epochs, images: instead of the scale's.
        validation: share of the training images to choose settings by; 0 chooses none.
        at: the sites; by default all that the paper numbers in the model.
        seeds: runs of each setting.

    Raises:
        ConfigError: no such figure, scale or model, one that cannot be run yet, too many or too few data sets, or a
            model without numbered sites.
        EncoderError: of text, an encoder that cannot be loaded.

    """
    figure = find(name)
    assert figure.make is not None
    base = figure.base(scale, model, epochs, images, validation)
    chosen = tuple(data) or figure.default_data(scale)
    figure.check_data(chosen)
    sites = list(dict.fromkeys(map(site, at))) or kind_of(base).sites(base)[: -1 if figure.inner else None]
    if all(isinstance(s, int) for s in sites):
        sites.sort()  # from the input to the head
    fine_tuning = 30 if scale == "full" else base.epochs
    plan = figure.make(base, sites, chosen)
    if not all(claim.members for claim in plan.claims):
        raise ConfigError(
            f"{figure.name} is about sites behind the input, and --at names {', '.join(map(str, sites))} alone: name "
            "one more, or leave --at out for all that are numbered."
        )
    return Sweep(figure.name, plan, out, seeds, fine_tuning)
