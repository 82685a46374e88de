"""SimCSE as the engine sees it: a module that makes a loss of a batch of sentences, and the feed of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graphaug.contrastive.gather import process_count, process_rank
from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.losses import info_nce
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.batches import epoch, pad
from graphaug.text.corpus.crops import Crops
from graphaug.text.corpus.masking import Masking
from graphaug.text.corpus.mlm import MaskedHead, chosen_positions, labelled, masked_loss
from graphaug.text.simcse import twice

SPANS = 1 << 32
"""Added to the seed of crops, so that their draws are none of the order's and the masks'."""


class TextObjective(nn.Module):
    """The two passes of each sentence, and the losses on them.

    Args:
        network: ids and mask → vectors: `SimCSE`, with or without Deep Augmentation. With deep views it takes each
            sentence once and gives ``[z1; z2]``.
        config: the objectives, their weights, and how many sentences are computed at once.
        reader: ids and mask → hidden states, for masked language; its augmentation draws for itself.
        head: hidden states → scores of tokens, for masked language.

    """

    def __init__(
        self,
        network: nn.Module,
        config: SimCSEConfig,
        reader: nn.Module | None = None,
        head: MaskedHead | None = None,
    ) -> None:
        super().__init__()
        self.network, self.reader, self.head = network, reader, head
        self.contrastive, self.cache, self.deep_views = config.contrastive, config.cache, config.deep_views
        self.temperature, self.gather = config.temperature, config.gather
        self.apart = config.crop < 1
        self.weight = config.mlm_weight if config.contrastive else 1.0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        masked_ids: Tensor | None = None,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The measures of a batch.

        Args:
            input_ids: ``(N, tokens)``, which both passes read; of crops ``(2N, tokens)``, those of each pass.
            attention_mask: as many.
            masked_ids: ``(2N, tokens)``, both passes, masked each for itself.
            positions: among ``2N · tokens``, that the masked-language loss is taken at.
            labels: what stood at them.

        Returns:
            ``loss`` in nats; with masked language ``mlm``, its part before it is weighted; with SimCSE ``spread``, see
            `embedding_spread`.

        """
        measures: dict[str, Tensor] = {}
        losses = []
        if self.contrastive:
            z1, z2 = self._vectors(input_ids, attention_mask)
            # Eight bits of mantissa are too few for a sum of exponentials.
            with torch.autocast(z1.device.type, enabled=False):
                z1, z2 = z1.float(), z2.float()
                losses.append(info_nce(z1, z2, self.temperature, gather=self.gather))
                measures["spread"] = embedding_spread(torch.cat([z1, z2]).detach())
        if masked_ids is not None:
            assert positions is not None
            assert labels is not None
            measures["mlm"] = self._told(masked_ids, attention_mask, positions, labels)
            losses.append(self.weight * measures["mlm"])
        return {"loss": sum(losses[1:], losses[0]), **measures}

    def _vectors(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of both passes, ``(N, width)`` each."""
        if self.cache is None:
            return self._pair(input_ids, attention_mask)
        # Gradient caching (Gao et al. 2021, arXiv:2101.06983): the parts are computed without keeping anything, the
        # loss is taken on all vectors, and the backward computes each part again, with its draws.
        parts = zip(self._parts(input_ids), self._parts(attention_mask), strict=True)
        pairs = [checkpoint(self._pair, *part, use_reentrant=False) for part in parts]
        first, second = zip(*pairs, strict=True)
        return torch.cat(first), torch.cat(second)

    def _pair(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        z: Tensor = self.network(**(batch if self.deep_views or self.apart else twice(batch)))
        z1, z2 = z.chunk(2)
        return z1, z2

    def _parts(self, rows: Tensor) -> Sequence[Tensor]:
        """The arguments of `_pair`, of as many sentences as are computed at once."""
        assert self.cache is not None
        if not self.apart:
            return list(rows.split(self.cache))
        return [
            torch.cat(pair) for pair in zip(*(half.split(self.cache) for half in rows.chunk(2)), strict=True)
        ]

    def _told(self, masked_ids: Tensor, attention_mask: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the tokens to be told, in nats."""
        mask = attention_mask if self.apart else torch.cat([attention_mask, attention_mask])
        if self.cache is None:
            total = self._told_part(masked_ids, mask, positions, labels)
        else:
            parts = self._told_parts(masked_ids, mask, positions, labels, self.cache)
            total = torch.stack(
                [checkpoint(self._told_part, *part, use_reentrant=False) for part in parts]
            ).sum()
        count = labelled(labels)
        if process_count() > 1:  # the mean over all processes, which have different numbers of them
            dist.all_reduce(count)
        return total / (count.clamp(min=1) / process_count())

    @staticmethod
    def _told_parts(
        masked_ids: Tensor, mask: Tensor, positions: Tensor, labels: Tensor, size: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The arguments of `_told_part` for both passes of ``size`` sentences at a time."""
        count, width = len(mask) // 2, mask.shape[1]
        row, column = positions // width, positions % width
        half, sentence = row // count, row % count
        for start in range(0, count, size):
            end = min(start + size, count)
            inside = (sentence >= start) & (sentence < end)
            moved = (half * (end - start) + sentence - start) * width + column
            rows = [torch.cat([part[start:end] for part in both.chunk(2)]) for both in (masked_ids, mask)]
            yield rows[0], rows[1], moved[inside], labels[inside]

    def _told_part(self, masked_ids: Tensor, mask: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        assert self.reader is not None
        assert self.head is not None
        hidden: Tensor = self.reader(input_ids=masked_ids, attention_mask=mask)
        scores = self.head(hidden.flatten(0, 1)[positions][None])[0]
        return masked_loss(scores, labels)


class Reader(nn.Module):
    """An encoder's hidden states; its sites have the names and numbers that they have in `SimCSE`, the head's apart.

    Args:
        encoder: a transformers encoder; it is not copied.

    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(rows, tokens)`` ids and their mask to ``(rows, tokens, width)``."""
        outputs: Any = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = outputs.last_hidden_state
        return hidden


class TextFeed:
    """Batches of sentences in few shapes, in an order of their own generator, and masked by another one.

    What is drawn does not depend on what the model draws, nor on how many processes there are: each takes its share of
    every batch.

    Args:
        rows: ids of the tokens of each sentence.
        config: batch size, seed.
        sizes: lengths that batches are padded to.
        pad_id: what they are padded with.
        device: where batches go.
        masking: draws masked tokens, for masked language.
        crops: draws what each pass reads of a sentence; without it both read the whole.

    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        config: SimCSEConfig,
        sizes: Sequence[int],
        pad_id: int,
        device: torch.device,
        masking: Masking | None = None,
        crops: Crops | None = None,
    ) -> None:
        self.rows, self.sizes, self.pad_id, self.device, self.masking = rows, sizes, pad_id, device, masking
        self.crops, self.spans = crops, torch.Generator().manual_seed(config.seed + SPANS)
        self.batch_size = config.batch_size
        self.steps = len(rows) // self.batch_size
        self.order = torch.Generator().manual_seed(config.seed)
        self.masks = torch.Generator().manual_seed(config.seed)
        self.chosen: list[list[int]] = []
        self._before_epoch = self.order.get_state()

    def start_epoch(self) -> None:
        """Draw the order of an epoch."""
        self._before_epoch = self.order.get_state()
        self.chosen = list(epoch(len(self.rows), self.batch_size, self.order))

    def batches(self, step: int) -> Iterator[tuple[Tensor, ...]]:
        """This process's share of a batch: the arguments of `TextObjective`."""
        rows = [self.rows[i] for i in self.chosen[step]]
        share = len(rows) // process_count()
        own = slice(process_rank() * share, (process_rank() + 1) * share)

        def ours(both: Tensor) -> Tensor:
            return torch.cat([half[own] for half in both.chunk(2)])

        if self.crops is None:
            ids, mask = pad(rows, self.sizes, self.pad_id)
            batch, both = [ids[own], mask[own]], torch.cat([ids, ids])
        else:
            passes = [*self.crops(rows, self.spans), *self.crops(rows, self.spans)]
            both, mask = pad(passes, self.sizes, self.pad_id)
            batch = [ours(both), ours(mask)]
        if self.masking is not None:
            masked, labels = map(ours, self.masking(both, self.masks))
            batch += [masked, *chosen_positions(labels)]
        yield tuple(t.to(self.device, non_blocking=True) for t in batch)

    def state_dict(self, new_epoch: bool) -> dict[str, Any]:
        """The generators; the one of the order as it was before this epoch, or with ``new_epoch`` as it is."""
        drawn = {"masks": self.masks.get_state()}
        if self.crops is not None:
            drawn["spans"] = self.spans.get_state()
        return {"order": self.order.get_state() if new_epoch else self._before_epoch, **drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.order.set_state(state["order"])
        self.masks.set_state(state["masks"])
        if self.crops is not None:
            self.spans.set_state(state["spans"])
