"""What each process of a training on text does: encoder, objective and engine, and what happens between steps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from graphaug.analysis.geometry import pair_geometry
from graphaug.contrastive.augmented import deep_augmented
from graphaug.contrastive.devices import own_generators
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.gather import process_count
from graphaug.contrastive.optim import build_optimizer
from graphaug.contrastive.runs.checkpoints import Checkpoint, Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.schedule import learning_rate
from graphaug.contrastive.watch import Board, check_spread
from graphaug.errors import ConfigError, EncoderError, InvalidOption, SiteNotFound
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import resolve
from graphaug.select.stages import paper_stages
from graphaug.text.config import SimCSEConfig, versions
from graphaug.text.corpus.batches import pad, widths
from graphaug.text.corpus.masking import Masking
from graphaug.text.corpus.mlm import MaskedHead, masked_head
from graphaug.text.corpus.sentences import fingerprint
from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.encoders.encoder import TextEncoder, longest, padding_id
from graphaug.text.encoders.load import (
    RUN,
    load_trainable,
    notes_of,
    save_encoder,
    with_dropout,
    without_dropout,
)
from graphaug.text.encoders.models import from_config
from graphaug.text.objective import Reader, TextFeed, TextObjective
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.evaluate import sts_dev
from graphaug.text.sts.tasks import StsTask

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEST = "best"
"""The directory in a run's directory with the encoder that STS-B's development set preferred."""


@dataclass(frozen=True)
class Model:
    """What is trained, and its tokenizer; the head is that of masked language."""

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: MaskedHead | None

    def save(self, path: Path, **notes: Any) -> None:
        """Write it as an encoder that ``load_encoder`` reads, with its head if it has one."""
        with self.head.whole(self.encoder) if self.head is not None else nullcontext(self.encoder) as whole:
            save_encoder(path, whole, self.tokenizer, notes=notes)

    def state(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        if self.head is not None:
            state |= {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take weights that `state` gave."""
        parts: dict[str, nn.Module | None] = {"encoder": self.encoder, "head": self.head}
        for prefix, part in parts.items():
            if part is not None:
                start = prefix + "."
                part.load_state_dict(
                    {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
                )


def build(config: SimCSEConfig, lines: Sequence[str]) -> Model:
    """The encoder with its tokenizer that a configuration names; ``from_config`` trains the tokenizer on the lines.

    Raises:
        EncoderError: what ``load_trainable`` raises.
        ConfigError: no such size.

    """
    if config.from_config is not None:
        tokenizer = train_wordpiece(lines, config.vocab_size)
        encoder = from_config(config.from_config, tokenizer)
        if not config.dropout:
            # The layers have read their probabilities by now.
            kept = without_dropout(encoder.config)
            encoder = type(encoder)(encoder.config, add_pooling_layer=False)
            with_dropout(encoder.config, kept)
        return Model(encoder, tokenizer, masked_head(encoder) if config.mlm else None)
    assert config.encoder is not None
    return Model(*load_trainable(config.encoder, mlm=config.mlm, dropout=config.dropout))


def train(
    fabric: Fabric,
    emit: Callable[[Any], None],
    config: SimCSEConfig,
    lines: Sequence[str],
    dev: StsTask | None,
    out: str | None,
    resume: bool,
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Train; return the weights, the metrics and the result.

    Raises:
        GraphaugError: what ``simcse`` raises while it trains.

    """
    checkpoints = Checkpoints(Path(out) / "checkpoints", config.keep) if out is not None else None
    found = checkpoints.latest() if checkpoints is not None and resume else None
    with torch.random.fork_rng(own_generators(fabric.device)):
        torch.manual_seed(config.seed)
        model = build(config, lines)
        check_passes(model.encoder, config)
        reader = TextEncoder(model.encoder, model.tokenizer)
        rows, truncated = tokenized(model, lines, config.max_length)
        masking = Masking(model.tokenizer, config.mlm_rate) if config.mlm else None
        wrapped = SimCSE(model.encoder).to(fabric.device)
        if model.head is not None:
            model.head.to(fabric.device)
        feed = TextFeed(rows, config, sizes(config), padding_id(model.tokenizer), fabric.device, masking)
        with augmented(wrapped, model, config, feed) as objective:
            run = RunDirectory.at(out) if out is not None and fabric.is_global_zero else None
            counts = {"sentences": len(rows), "truncated": truncated, "steps_per_epoch": feed.steps}
            with run.held() if run is not None else nullcontext():
                if run is not None and (found is None or run.settings() is None):
                    run.start(resolved(config, model, objective, {**fingerprint(lines), **counts}))
                fabric.barrier()
                engine = build_engine(fabric, objective, feed, config)
                if fabric.global_rank:
                    # Each process draws its own dropout; with one there is nothing to tell apart.
                    torch.manual_seed(config.seed + fabric.global_rank * 1_000_003)
                hooks = _Hooks(engine, model, reader, run, checkpoints, dev, config, emit)
                hooks.begin(found)
                if fabric.is_global_zero:
                    emit(counts)
                metrics = engine.fit(hooks.after_step, hooks.after_line)
                result = hooks.finish()
                return model.state(), metrics, result


def check_passes(encoder: nn.Module, config: SimCSEConfig) -> None:
    """Raise ``ConfigError`` if the two passes of a sentence would be one: no dropout anywhere, and no site that acts.

    With ``dropout=False`` that was asked for, and the negatives alone are trained on.
    """
    acts = (config.at or config.everywhere) and config.rate > 0 and config.subset > 0
    if not config.contrastive or not config.dropout or acts or _drops(encoder):
        return
    raise ConfigError(
        f"{config.encoder!r} has no dropout (all its probabilities are 0), so that the two passes of a sentence would "
        "be the same: add Deep Augmentation with at= (--at), set probabilities in the encoder's config.json, or say "
        "with dropout=False (--no-dropout) that it is meant."
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


def sizes(config: SimCSEConfig) -> tuple[int, ...]:
    """The lengths that batches are padded to: four at most, so that a compiled step is compiled a handful of times."""
    return widths(config.max_length, 8 * math.ceil(config.max_length / 32))


def tokenized(model: Model, lines: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
    """Ids of the tokens of every sentence, and how many sentences were truncated.

    Raises:
        InvalidOption: the model or its tokenizer cannot take so many tokens.

    """
    limit = longest(model.encoder, model.tokenizer)
    if max_length > limit:
        raise InvalidOption(f"max_length must be from 3 to {limit} for this encoder, not {max_length}.")
    rows: list[list[int]] = []
    truncated = 0
    for start in range(0, len(lines), 10_000):
        batch = model.tokenizer(list(lines[start : start + 10_000]), truncation=True, max_length=max_length)
        rows += batch["input_ids"]
        truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings or ())
    return rows, truncated


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
    reading = replace(config, at=passed, everywhere=False)
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


def build_engine(fabric: Fabric, objective: TextObjective, feed: TextFeed, config: SimCSEConfig) -> Engine:
    """The engine of a run."""
    optimizer = build_optimizer(
        config.optimizer, objective, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    return Engine(
        fabric,
        objective,
        feed,
        optimizer,
        lambda epoch: learning_rate(config, epoch),
        epochs=config.epochs,
        compile=config.compile,
        dynamic=False,
        clip=config.clip,
        line_every=config.report_every,
    )


class _Hooks:
    """What a run does between steps. One process looks and writes; all take part in the collectives."""

    def __init__(
        self,
        engine: Engine,
        model: Model,
        reader: TextEncoder,
        run: RunDirectory | None,
        checkpoints: Checkpoints | None,
        dev: StsTask | None,
        config: SimCSEConfig,
        emit: Callable[[Any], None],
    ) -> None:
        self.engine, self.model, self.reader, self.run = engine, model, reader, run
        self.checkpoints, self.dev, self.config, self.emit = checkpoints, dev, config, emit
        self.last = config.epochs * engine.feed.steps
        self.best: dict[str, Any] = {}
        self.board: Board | None = None

    def begin(self, found: Checkpoint | None) -> None:
        """Go to the checkpoint, if there is one."""
        if found is not None:
            self.engine.load_state_dict(found.state)
            self.best = dict(found.state["best"])
        if self.run is not None:
            self.run.tidy()
            self._settle_best(self.run.path / BEST)
            self.run.metrics = list(self.engine.position.metrics)
            self.board = Board(self.run.path / "tensorboard", self.engine.position.step + 1)
            if found is None:
                self._snapshot(0)
        self.engine.fabric.barrier()

    def _settle_best(self, path: Path) -> None:
        """Let ``best/`` and what is known of it be of one step: a kill may have left a later one than the checkpoint's.

        What is dropped is found again on the way; until then the best is the best since the checkpoint.
        """
        if self.best.get("step") == notes_of(path).get("step"):
            return
        self.best = {}
        if path.is_dir():
            shutil.rmtree(path)

    def after_step(self, step: int) -> None:
        """Keep a snapshot when one is due, and a checkpoint, this at the very end too."""
        self._snapshot(step)
        every = self.config.checkpoint_every
        if self.checkpoints is None or not every or (step % every and step != self.last):
            return
        state = {**self.engine.state_dict(), "best": self.best}
        if self.run is not None:
            self.checkpoints.save(step, state)

    def _snapshot(self, step: int) -> None:
        every = self.config.snapshot_every
        if self.run is not None and every and step % every == 0:
            self.model.save(self.run.path / "snapshots" / f"step-{step:07d}", step=step)

    def after_line(self, line: dict[str, Any]) -> None:
        """Look at the encoder, and write the line down."""
        line["step"] = self.engine.position.step
        if "spread" in line and line["epoch"] > self.config.warmup:
            check_spread(line, self.config.collapse)
        if self.engine.fabric.is_global_zero:
            if self.dev is not None:
                line |= self.look(self.dev)
            if line.get("stsb_dev", -2.0) > self.best.get("stsb_dev", -2.0):
                self.best = {name: line[name] for name in ("step", *LOOKED_AT)}
                if self.run is not None:
                    self.model.save(self.run.path / BEST, step=line["step"])
            if self.run is not None:
                self.run.epoch(line)
            if self.board is not None:
                self.board(line)
            self.emit(line)
        self.engine.fabric.barrier()

    def look(self, dev: StsTask) -> dict[str, float]:
        """Spearman, alignment and uniformity on the development pairs; nothing where all vectors are equal."""
        sentences = list(dict.fromkeys((*dev.first, *dev.second)))
        number = {text: i for i, text in enumerate(sentences)}
        try:
            vectors = self.reader.encode(sentences)  # once for both
            encode = lambda texts: vectors[[number[text] for text in texts]]  # noqa: E731
            geometry = pair_geometry(encode, dev.first, dev.second, dev.gold)
            scores = (sts_dev(encode, dev), *map(float, geometry))
        except EncoderError:  # whether a collapse ends the run is decided by its spread
            return {}
        return dict(zip(LOOKED_AT, scores, strict=True))

    def finish(self) -> dict[str, Any]:
        """Write what is left of the run; returns its result: of the last step, and beside it of the best one."""
        if self.board is not None:
            self.board.close()
        line = self.engine.position.metrics[-1]
        result: dict[str, Any] = {name: line[name] for name in ("step", "loss", *LOOKED_AT) if name in line}
        if self.best:
            result["best_on_dev"] = self.best
        if self.run is not None:
            self.model.save(self.run.path / RUN)
        return result


LOOKED_AT = ("stsb_dev", "alignment", "uniformity")
"""What a line of the metrics says about STS-B's development set."""


def resolved(
    config: SimCSEConfig, model: Model, objective: TextObjective, counts: dict[str, Any]
) -> dict[str, Any]:
    """What ``config.yaml`` says: the settings, what they resolved to, and the versions."""

    def plan(network: nn.Module | None) -> str:
        return str(getattr(network, "plan", "no Deep Augmentation"))

    return {
        **config.to_dict(),
        "resolved": {
            **counts,
            "tokens": len(model.tokenizer),
            "processes": process_count(),
            **({"plan": plan(objective.network)} if config.contrastive else {}),
            **({"plan_of_masked_language": plan(objective.reader)} if config.mlm else {}),
        },
        "versions": versions(),
    }
