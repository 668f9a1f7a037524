"""What a drafter learns from: places in documents that the backbone reads, and what followed."""

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
from streamlm.runtime.drafter import Drafter, DrafterConfig, Known, newest_slots
from streamlm.state import State
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.transfer import send


@dataclass(frozen=True)
class Places:
    """Places in a segment that was read, and what is to be guessed there.

    Attributes:
        known: of B · n places; see `Known`.
        targets: [B · n, N] the tokens that follow, IGNORED behind a document's end.
        hidden: [B · n, N, D] the backbone's output from which it predicts each of them.
    """

    known: Known
    targets: Tensor
    hidden: Tensor


class Reader:
    """Documents read side by side by the backbone, without gradients."""

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
    def read(self, at: Callable[[int], Tensor]) -> Places | None:
        """Read the next segment of every row; None at the end of the corpus.

        Args:
            at: from the number of places there are to [B, n] of them, or [1, n] for all rows alike.
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
        tail = torch.cat([tail[:, :-1], inputs[:, :1]], dim=1)  # where documents begin, bos
        tokens = torch.cat([tail, targets], dim=1)
        rows = torch.arange(len(inputs), device=model.device)[:, None]
        places = send(at(self.segment_len - config.n_tokens), model.device)
        places = places.expand(len(inputs), -1)
        found = self._places(rows, places, tokens, hidden, read)
        self.tail = tokens[:, -config.label_len :]
        self.state = model.commit(read, self.cache)[0]
        return found

    def _places(
        self, rows: Tensor, at: Tensor, tokens: Tensor, hidden: Tensor, read: State
    ) -> Places:
        """Args: at: [B, n], newest token read; tokens: [B, label_len + T]; read: after them."""
        config = self.config

        def window(start: Tensor, n: int) -> Tensor:
            return start[..., None] + torch.arange(n, device=start.device)  # [B, n, …]

        slots, real = newest_slots(read, config.context_len)
        seen = rows[..., None], window(at + 1, config.context_len)
        labels = tokens[rows[..., None], window(at + 1, config.label_len)]
        following = window(at + 1, config.n_tokens)
        targets = tokens[rows[..., None], config.label_len + following]
        known = Known(
            torch.where(labels == IGNORED, -1, labels).flatten(0, 1),
            slots[seen].flatten(0, 1),
            real[seen].flatten(0, 1),
            hidden[rows, at].flatten(0, 1),
        )
        # Nothing is known, so nothing asked, behind a document's end.
        over = tokens[rows, config.label_len + at] == IGNORED
        targets = targets.masked_fill(over[..., None], IGNORED)
        said = hidden[rows[..., None], following]
        return Places(known, targets.flatten(0, 1), said.flatten(0, 1))


def offset_losses(drafter: Drafter, model: Model, places: Places, others: Tensor) -> Tensor:
    """Cross-entropy in nats with what the backbone says, knowing all tokens before: [B · n, N].

    What it says is a better teacher than the one token that came, and what drafts are checked by.
    Both distributions are those among some of the vocabulary, which saves most of the time: the
    loss is least where they agree, whichever tokens are compared.

    Args:
        others: ids that are compared besides the targets.
    """
    compared = torch.cat([places.targets[places.targets != IGNORED], others]).unique()
    with torch.no_grad():
        wanted = _logits_of(model, places.hidden, compared).softmax(dim=-1)
    guessed = _logits_of(model, drafter(model, places.known), compared).log_softmax(dim=-1)
    losses = -(wanted * guessed).sum(dim=-1)
    return losses.masked_fill(places.targets == IGNORED, 0)


def _logits_of(model: Model, outputs: Tensor, ids: Tensor) -> Tensor:
    """Logits of some of the vocabulary: [..., D] → [..., n] float32."""
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
    """How well a drafter guesses documents: a conditionally independent likelihood.

    Its tokens do not know of each other, so this is no likelihood of the backbone's, and no bits
    per byte.

    Args:
        max_tokens: stop after about so many were read; stride: measure at every so many.

    Returns:
        Mean nats a token of each offset, and the number of places.
    """
    model = checkpoint.model
    reader = Reader(checkpoint, drafter.config, corpus, min(batch_size, len(corpus)))
    total, count, read = torch.zeros(drafter.config.n_tokens).double(), 0, 0
    with in_mode(drafter, training=False):
        while True:
            places = reader.read(lambda n: torch.arange(0, n, stride)[None])
            if places is None or (max_tokens is not None and read >= max_tokens):
                break
            whole = (places.targets != IGNORED).all(dim=1)
            found = -model.log_prob(drafter(model, places.known), places.targets)
            total += found[whole].sum(dim=0).double().cpu()
            count += int(whole.sum())
            n = len(reader.batches.document) * reader.segment_len
            read += n
            progress(n)
    if not count:
        raise ValueError("no place with enough text behind it; allowed: longer documents")
    return (total / count).tolist(), count
