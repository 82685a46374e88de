"""The settings of a training of sentence embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphaug.contrastive.config.settings import Settings, package_versions, setting
from graphaug.contrastive.devices import world_size
from graphaug.errors import ConfigError


@dataclass(frozen=True)
class SimCSEConfig(Settings):
    """What a run does; equal configurations and versions give equal numbers on the CPU.

    The defaults are those of unsupervised SimCSE on BERT-base (Gao et al. 2021, appendix A).

    Raises:
        ConfigError: a value of the wrong type or outside its domain.

    """

    text: str | None = setting(None, "File of sentences, one a line: plain, gzip or xz.")
    sentences: int | None = setting(
        None, "Train on so many of the sentences, spread evenly over the file; by default all."
    )
    encoder: str | None = setting(None, "A transformers encoder or a run: a directory, or a name on the hub.")
    from_config: str | None = setting(
        None,
        "Instead of an encoder: a size with random weights, such as bert-small; its tokenizer is trained.",
    )
    vocab_size: int = setting(8000, "Tokens of the tokenizer that --from-config trains.")
    sts: str | None = setting(
        None, "SentEval's directory or archive: STS-B's development set is looked at while training."
    )
    at: tuple[str | int, ...] = setting(
        (),
        "A site; a whole number is the paper's: 0 embeddings, i block i, the next one the head. Repeatable.",
    )
    contrastive: bool = setting(True, "SimCSE's objective; without it, --mlm alone.")
    temperature: float = setting(0.05, "Temperature of the loss, in units of cosine similarity.")
    dropout: bool = setting(True, "The model's own dropout, by which the two passes of a sentence differ.")
    crop: float = setting(
        1.0,
        "Share of a sentence's tokens that a pass reads: a span that each draws anew; 1 is the whole sentence.",
    )
    mlm: bool = setting(False, "Add the masked-language objective.")
    mlm_weight: float = setting(0.1, "Its weight.")
    mlm_rate: float = setting(0.15, "Share of the tokens that are to be told.")
    mlm_augment: bool = setting(
        True, "Augment in its forward too, as the paper's authors do; not behind the head, which it has not."
    )
    max_length: int = setting(32, "Tokens of a sentence, special ones included; longer ones are truncated.")
    epochs: int = setting(1, "Passes over the sentences.")
    batch_size: int = setting(64, "Sentences a step, of all devices together; each is seen twice.")
    cache: int | None = setting(
        None, "Sentences a part, in gradient caching: memory for so many, the gradient of the whole batch."
    )
    optimizer: str = setting("adamw", "adamw, sgd or lars.")
    lr: float = setting(3e-5, "Peak learning rate.")
    schedule: str = setting("linear", "linear or cosine (behind the warm-up).")
    warmup: float = setting(0.0, "Epochs of linear increase of the learning rate, whole or a fraction.")
    weight_decay: float = setting(0.0, "L2 penalty; AdamW and LARS leave norms and biases out of it.")
    clip: float | None = setting(1.0, "Largest norm of the gradient; longer ones are shortened to it.")
    report_every: int = setting(125, "Steps between lines of the metrics, each with a look at STS-B.")
    checkpoint_every: int = setting(1000, "Steps between checkpoints; 0 makes none.")
    snapshot_every: int = setting(
        0, "Keep the encoder every so many steps, and the untrained one; 0 for none."
    )

    FREE: ClassVar[tuple[str, ...]] = ("checkpoint_every", "keep", "snapshot_every", "collapse")
    SHAPES: ClassVar[tuple[str, ...]] = ("linear", "cosine")

    def check(self) -> None:
        """Check the values that no other part of the library checks."""
        super().check()
        self.at_least(vocab_size=10, max_length=3, report_every=1, checkpoint_every=0, snapshot_every=0)
        self.positive("mlm_weight", "mlm_rate")
        self.shares("mlm_rate", "crop")
        self.positive("crop")
        if self.clip is not None:
            self.positive("clip")
        if self.sentences is not None:
            self.at_least(sentences=2)
        if self.cache is not None:
            self.at_least(cache=1)
            if self.compile:
                raise ConfigError(
                    "the parts of a cached gradient are not compiled: leave out --cache or --compile."
                )
            self._check_parts(self.cache)
        if self.deep_views and not self.contrastive:
            raise ConfigError(
                "deep_views=True without the contrastive objective, whose views they are: leave out --deep-views, or "
                "--no-contrastive."
            )
        if self.deep_views and self.crop < 1:
            raise ConfigError(
                f"deep_views=True with crop={self.crop:g}: the two views are made of one reading of a sentence, and "
                "crops are two. Leave out --deep-views, or --crop."
            )
        if not (self.contrastive or self.mlm):
            raise ConfigError("without the contrastive objective nothing is trained on: add --mlm.")
        if self.encoder is not None and self.from_config is not None:
            raise ConfigError(
                f"encoder={self.encoder!r} and from_config={self.from_config!r}: give one of them."
            )

    def rows_at_once(self) -> int:
        """See `Settings.rows_at_once`; of as many sentences as are computed at once."""
        return 2 * self.cache if self.cache else super().rows_at_once()

    def _check_parts(self, cache: int) -> None:
        """Refuse parts that Deep Augmentation would draw another share of their rows in than of the batch."""
        if not (self.at or self.everywhere) or self.sampling != "exact":
            return
        parts = {cache, self.batch_size // world_size(self.devices) % cache} - {0}
        if any(abs(2 * n * self.subset - round(2 * n * self.subset)) > 1e-9 for n in parts):
            raise ConfigError(
                f"cache={cache}: {self.subset:g} of the rows of a part is no whole number, so that another share would "
                "be augmented than asked for. Give a cache that divides the batch, with a whole share, or "
                "sampling='bernoulli'."
            )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return package_versions("torch", "transformers", "tokenizers", "numpy", "scipy")
