"""The two passes of a sentence, and of masked language: by what they differ, and which sites each of them passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from graphaug.contrastive.augmented import deep_augmented
from graphaug.errors import ConfigError, SiteNotFound
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import resolve
from graphaug.select.stages import paper_stages
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.batches import pad
from graphaug.text.model import Model
from graphaug.text.objective import Reader, TextFeed, TextObjective
from graphaug.text.simcse import SimCSE


def check_passes(encoder: nn.Module, config: SimCSEConfig) -> None:
    """Raise ``ConfigError`` if the two passes of a sentence would be one: no dropout, no crops, and no site that acts.

    With ``dropout=False`` that was asked for, and the negatives alone are trained on.
    """
    acts = config.crop < 1 or ((config.at or config.everywhere) and config.rate > 0 and config.subset > 0)
    if not config.contrastive or not config.dropout or acts or _drops(encoder):
        return
    raise ConfigError(
        f"{config.encoder!r} has no dropout (all its probabilities are 0), so that the two passes of a sentence would "
        "be the same: add Deep Augmentation with at= (--at), or crop= (--crop), set probabilities in the encoder's "
        "config.json, or say with dropout=False (--no-dropout) that it is meant."
    )


def _drops(encoder: nn.Module) -> bool:
    """Whether a module of it has a dropout probability above 0: as its own ``p``, or for a function that it calls."""
    for module in encoder.modules():
        chances = [value for name, value in vars(module).items() if "drop" in name]
        if isinstance(module, _DropoutNd):
            chances.append(module.p)
        if any(isinstance(p, (int, float)) and not isinstance(p, bool) and p > 0 for p in chances):
            return True
    return False


@contextmanager
def augmented(wrapped: SimCSE, model: Model, config: SimCSEConfig, feed: TextFeed) -> Iterator[TextObjective]:
    """The objective over the rewritten encoder, or the plain one without sites.

    Raises:
        ConfigError: there are sites, and nothing of what is trained passes them.
        SiteNotFound: a number that is no stage of the encoder.
        GraphaugError: what ``graphaug.rewrite`` raises about the sites.

    """

    def example() -> dict[str, Tensor]:
        ids, mask = pad(feed.rows[:4], feed.sizes, feed.pad_id)
        return {"input_ids": ids.to(feed.device), "attention_mask": mask.to(feed.device)}

    _check_numbers(wrapped, config)
    reader = Reader(model.encoder)
    passed: tuple[str | int, ...] = ()
    if config.mlm and config.mlm_augment:
        passed = _below_the_head(wrapped, reader, config, example)
    if (config.at or config.everywhere) and not (config.contrastive or passed):
        why = (
            "they lie behind the head, which it has not"
            if config.mlm_augment
            else "it does not with mlm_augment=False"
        )
        raise ConfigError(
            f"Deep Augmentation at {', '.join(map(repr, config.at)) or 'every stage'} would never act: masked language "
            f"alone is trained, and would have to pass the sites, but {why}."
        )
    reading = replace(config, at=passed, everywhere=False, deep_views=False)
    name = config.encoder or str(config.from_config)
    with (
        deep_augmented(wrapped, config, example, name) as network,
        deep_augmented(reader, reading, example, name, whole=False) as read,
    ):
        yield TextObjective(network, config, *((read, model.head) if config.mlm else ())).to(feed.device)


def _check_numbers(wrapped: SimCSE, config: SimCSEConfig) -> None:
    stages = paper_stages(wrapped)
    ends = [at for at in config.at if at in ("head", max(stages, default=None))]
    if ends and config.contrastive and config.stop_grad and config.subset == 1 and not config.mlm:
        raise ConfigError(
            f"stop_grad at {ends[0]!r} with subset=1 stops the gradient of every vector: nothing would be trained. "
            "Give a smaller subset, or a site before the head."
        )
    for at in config.at:
        if (
            isinstance(at, int) and stages and at not in stages
        ):  # the input, -1, is whole numbers, which have no gradient
            last = max(stages)
            raise SiteNotFound(
                f"{at} is out of range: SimCSE has the stages 0 to {last}: 0 behind the embeddings, 1 to {last - 1} "
                f"behind the blocks, {last} behind the head. Did you mean {min(max(at, 0), last)}?"
            )


def _below_the_head(
    wrapped: SimCSE, reader: Reader, config: SimCSEConfig, example: Callable[[], dict[str, Tensor]]
) -> tuple[str | int, ...]:
    """The sites that masked language passes, too: those in the encoder."""
    numbers = tuple(paper_stages(reader))
    if config.everywhere:
        return numbers
    found: dict[str | int, None] = {}
    structure = None
    for at in config.at:
        if isinstance(at, int):
            sites: list[str | int] = [at] if at in numbers else []
        else:
            structure = structure or ModelStructure(wrapped, example())
            targets = resolve(at, structure)
            sites = [str(target) for target in targets if target.path.split(".")[0] == "encoder"]
        found |= dict.fromkeys(sites)
    return tuple(found)
