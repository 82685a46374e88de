"""What the report shows of a run on text, computed from its encoders and the pairs of STS-B's development set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphaug.analysis.advise import Advice, advise, candidates
from graphaug.analysis.geometry import Geometry, site_embeddings
from graphaug.analysis.report.findings import TEXT, Measurement, RunAnalysis
from graphaug.analysis.report.layers import SEED, augmented_sites, compare_layers, first_rows, spectrum
from graphaug.analysis.report.read import TextRun
from graphaug.contrastive.geometry import POSITIVE
from graphaug.errors import DataError, EncoderError
from graphaug.text.corpus.sentences import read_corpus
from graphaug.text.encoders.encoder import longest
from graphaug.text.encoders.load import notes_of
from graphaug.text.job import BEST
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.evaluate import sts_dev
from graphaug.text.sts.tasks import StsTask, load_tasks
from graphaug.text.train import check_dev

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = "head"
"""The site with the vectors that a sentence is compared by: in eval mode the first position of the last block."""


def analyze_text(
    run: TextRun, *, sts: str | os.PathLike[str] | None = None, samples: int = 512
) -> RunAnalysis:
    """Analyse a run on text, as `graphaug.analysis.report.analyze.analyze_run` does.

    The geometry is over all sentences of STS-B's development set, CKA and the dissection are over some of them.

    Raises:
        DataError: no STS data, or not what they should be.
        EncoderError: an encoder of the run cannot be loaded.
        Whatever `cka` raises.
    """
    source = sts or run.config.sts
    if source is None:
        raise DataError(
            f"the run in {str(run.path)!r} was trained without STS data, whose pairs its embeddings are measured by: "
            "name SentEval's directory or an archive of it with sts= (--sts)."
        )
    dev = check_dev(source)
    network, tokenizer = run.model()
    sentences = distinct(dev)
    looked_at = tokenized(network, tokenizer, some(sentences, samples))
    targets, why = augmented_sites(run, network, looked_at)
    layers = compare_layers(run, network, looked_at, text_sites(network, looked_at), targets, targets, why)
    names = list(layers.advice.similarity.rows)
    end = int(run.metrics[-1]["step"]) if run.metrics else 0
    encoders = {step: path for step, path in run.snapshots.items() if step != end}
    best = notes_of(run.path / BEST).get("step")
    if isinstance(best, int) and best != end:
        encoders.setdefault(best, run.path / BEST)
    found = {m.time: m for line in run.metrics if (m := _recorded(line))}
    top = torch.empty(0)
    for step, path in [*encoders.items(), (end, None)]:
        encoder = network if path is None else run.model(path)[0]
        embedded = _embedded(encoder, tokenizer, sentences, names)
        found[step] = _measured(step, embedded, dev, sentences)
        top = embedded[HEAD]  # the end's comes last
    return RunAnalysis(
        **vars(layers),
        run=run,
        words=TEXT,
        spectrum=spectrum(top, run),
        measurements=[found[step] for step in sorted(found)],
        scores={
            "STS-B dev": run.result.get("stsb_dev"),
            "best step on dev": run.result.get("best_on_dev", {}).get("stsb_dev"),
        },
        samples=len(looked_at["input_ids"]),
    )


def advise_text(run: TextRun, *, sts: str | os.PathLike[str] | None = None, samples: int = 512) -> Advice:
    """Advice for a run's encoder, on sentences of STS-B's development set, or of its text if it has no STS data.

    Raises:
        DataError: neither is to be had.
    """
    source = sts or run.config.sts
    if source is not None:
        sentences = distinct(*load_tasks(source, "dev", ["STS-B"]))
    elif run.config.text is not None:
        sentences = list(dict.fromkeys(read_corpus(run.config.text).lines))
    else:
        raise DataError(f"the run in {str(run.path)!r} names no text: name STS data with sts= (--sts).")
    network, tokenizer = run.model()
    looked_at = tokenized(network, tokenizer, some(sentences, samples))
    return advise(network, looked_at, text_sites(network, looked_at))


def distinct(dev: StsTask) -> list[str]:
    """Its sentences, each once."""
    return list(dict.fromkeys((*dev.first, *dev.second)))


def some(sentences: Sequence[str], count: int) -> list[str]:
    """A draw of at most so many, the same every time.

    Raises:
        DataError: there are fewer than 8.
    """
    if len(sentences) < 8:
        raise DataError(f"there are {len(sentences)} sentences: an analysis needs 8 or more.")
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(SEED))
    return [sentences[i] for i in order[:count].tolist()]


def text_sites(network: SimCSE, samples: dict[str, Tensor]) -> list[str]:
    """The sites to compare: embeddings, blocks and head."""
    found = candidates(network, first_rows(samples, 2))
    return found if HEAD in found else [*found, HEAD]


def tokenized(
    network: SimCSE, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]
) -> dict[str, Tensor]:
    """Ids and mask of sentences, padded to the longest, truncated only where the encoder has to."""
    limit = longest(network.encoder, tokenizer)
    batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _embedded(
    network: SimCSE, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], names: list[str]
) -> dict[str, Tensor]:
    """Embeddings of all sentences at all sites, in batches of similar length."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(order), 64):
            yield tokenized(network, tokenizer, [sentences[i] for i in order[start : start + 64]])

    back = torch.tensor(order).argsort()
    return {name: z[back] for name, z in site_embeddings(network, batches(), names).items()}


def _measured(step: int, embedded: dict[str, Tensor], dev: StsTask, sentences: Sequence[str]) -> Measurement:
    place = {text: i for i, text in enumerate(sentences)}
    positive = [i for i, gold in enumerate(dev.gold) if gold >= POSITIVE]
    first, second = ([place[side[i]] for i in positive] for side in (dev.first, dev.second))
    sites = tuple(Geometry.of(name, z, (z[first], z[second])) for name, z in embedded.items())
    z = embedded[HEAD]
    own = next(g for g in sites if g.site == HEAD)
    try:
        score = sts_dev(lambda texts: z[[place[text] for text in texts]], dev)
    except EncoderError:  # all vectors are equal, or differ by rounding alone
        score = None
    return Measurement.of(step, own, score, sites)


def _recorded(line: dict[str, Any]) -> Measurement | None:
    """What the training wrote down of a step whose encoder it did not keep."""
    if "alignment" not in line:
        return None
    return Measurement(int(line["step"]), line["alignment"], line["uniformity"], score=line["stsb_dev"])
