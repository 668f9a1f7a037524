"""Batches that a drafter trains on: positions in documents, and the tokens that follow."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.layers.adaptive import AdaptiveEmbedding
from streamlm.models.modes import in_mode
from streamlm.runtime.drafter import DraftContext, Drafter, DrafterConfig, newest_slots
from streamlm.state import State
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.transfer import send


@dataclass(frozen=True)
class DraftBatch:
    """Positions in a segment, and the tokens to propose there.

    Attributes:
        context: at the B · n positions.
        targets: [B · n, N] the tokens that follow; IGNORED after a document's end.
        hidden: [B · n, N, D] the backbone's outputs that predict them.
    """

    context: DraftContext
    targets: Tensor
    hidden: Tensor


class Reader:
    """Reads documents in parallel rows with the backbone, without gradients, for the drafter."""

    def __init__(
        self, checkpoint: Checkpoint, config: DrafterConfig, corpus: Corpus, batch_size: int,
        *, shuffle: int | None = None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config = checkpoint, config
        model = checkpoint.model
        self.segment_len = model.config.segment_len
        if config.n_tokens >= self.segment_len:
            raise ValueError(
                f"n_tokens = {config.n_tokens}; allowed: below segment_len = {self.segment_len}"
            )
        self.batches = SegmentBatches(
            corpus, batch_size, segment_len=self.segment_len, bos=checkpoint.tokenizer.bos_id,
            shuffle=shuffle,
        )  # fmt: skip
        self.state, self.cache = model.init_state(batch_size), Cache()
        self.tail = torch.full((batch_size, config.label_len), IGNORED, device=model.device)

    @torch.no_grad()
    def read(self, at: Callable[[int], Tensor]) -> DraftBatch | None:
        """Read the next segment of every row; None at the end of the corpus.

        Args:
            at: maps the number of positions to [B, n] of them, or [1, n] for all rows.
        """
        batch = next(self.batches, None)
        if batch is None:
            return None
        model, config = self.checkpoint.model, self.config
        begins = send(batch.begins, model.device)
        state, tail = self.state, self.tail.masked_fill(begins[:, None], IGNORED)
        if bool(batch.begins.any()):
            state = state.reset_rows(batch.begins)
        inputs, targets = (send(each, model.device) for each in (batch.inputs, batch.targets))
        hidden, read = model.hidden(inputs, state, self.cache)
        tail = torch.cat([tail[:, :-1], inputs[:, :1]], dim=1)  # bos where documents begin
        tokens = torch.cat([tail, targets], dim=1)
        rows = torch.arange(len(inputs), device=model.device)[:, None]
        positions = send(at(self.segment_len - config.n_tokens), model.device)
        positions = positions.expand(len(inputs), -1)
        drafts = self._batch(rows, positions, tokens, hidden, read)
        self.tail = tokens[:, -config.label_len :]
        self.state = model.commit(read, self.cache)[0]
        return drafts

    def _batch(
        self, rows: Tensor, at: Tensor, tokens: Tensor, hidden: Tensor, read: State
    ) -> DraftBatch:
        """The batch at some positions.

        Args:
            at: [B, n] index of the newest token that the backbone has read.
            tokens: [B, label_len + T].
            hidden: [B, T, D] the backbone's outputs.
            read: the state after the segment.
        """
        config = self.config

        def window(start: Tensor, n: int) -> Tensor:
            return start[..., None] + torch.arange(n, device=start.device)  # [B, n, …]

        slots, real = newest_slots(read, config.context_len)
        seen = rows[..., None], window(at + 1, config.context_len)
        labels = tokens[rows[..., None], window(at + 1, config.label_len)]
        following = window(at + 1, config.n_tokens)
        targets = tokens[rows[..., None], config.label_len + following]
        context = DraftContext(
            torch.where(labels == IGNORED, -1, labels).flatten(0, 1),
            slots[seen].flatten(0, 1),
            real[seen].flatten(0, 1),
            hidden[rows, at].flatten(0, 1),
        )
        # There is no context, and so no target, after a document's end.
        over = tokens[rows, config.label_len + at] == IGNORED
        targets = targets.masked_fill(over[..., None], IGNORED)
        said = hidden[rows[..., None], following]
        return DraftBatch(context, targets.flatten(0, 1), said.flatten(0, 1))


def offset_losses(drafter: Drafter, model: Model, batch: DraftBatch, others: Tensor) -> Tensor:
    """Cross-entropy in nats with the backbone's distribution given all tokens before: [B · n, N].

    The backbone's distribution is a better teacher than the one token that follows, and is what
    drafts are checked against. Both distributions are restricted to part of the vocabulary, which
    saves most of the time; the minimum is where they agree, whichever tokens are compared.

    Args:
        others: ids to compare besides the targets.
    """
    compared = torch.cat([batch.targets[batch.targets != IGNORED], others]).unique()
    with torch.no_grad():
        wanted = _logits_of(model, batch.hidden, compared).softmax(dim=-1)
    guessed = _logits_of(model, drafter(model, batch.context), compared).log_softmax(dim=-1)
    losses = -(wanted * guessed).sum(dim=-1)
    return losses.masked_fill(batch.targets == IGNORED, 0)


def _logits_of(model: Model, outputs: Tensor, ids: Tensor) -> Tensor:
    """Logits of part of the vocabulary: [..., D] → [..., n] float32."""
    if isinstance(model.embedding, AdaptiveEmbedding):
        return model.logits(outputs)[..., ids].float()
    return F.linear(outputs, model.embedding.weight[ids], model.output_bias[ids]).float()


@torch.no_grad()
def offset_nats(
    drafter: Drafter,
    checkpoint: Checkpoint,
    corpus: Corpus,
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    stride: int = 8,
    progress: Callable[[int], object] = lambda tokens: None,
) -> tuple[list[float], int]:
    """The drafter's negative log-likelihood of documents, by offset.

    The drafted tokens are conditionally independent, so this is not comparable with a model's bits
    per byte.

    Args:
        max_tokens: stop after about this many tokens.
        stride: tokens between measured positions.

    Returns:
        Mean nats per token at each offset, and the number of positions.
    """
    model = checkpoint.model
    reader = Reader(checkpoint, drafter.config, corpus, min(batch_size, len(corpus)))
    total, count, read = torch.zeros(drafter.config.n_tokens).double(), 0, 0
    with in_mode(drafter, training=False):
        while True:
            batch = reader.read(lambda n: torch.arange(0, n, stride)[None])
            if batch is None or (max_tokens is not None and read >= max_tokens):
                break
            whole = (batch.targets != IGNORED).all(dim=1)
            found = -model.log_prob(drafter(model, batch.context), batch.targets)
            total += found[whole].sum(dim=0).double().cpu()
            count += int(whole.sum())
            n = len(reader.batches.document) * reader.segment_len
            read += n
            progress(n)
    if not count:
        raise ValueError("no position is followed by enough text; allowed: longer documents")
    return (total / count).tolist(), count
