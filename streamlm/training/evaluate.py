"""Evaluation of a model on documents: bits per byte, word perplexity, loss by position."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.transfer import send


@dataclass(frozen=True)
class DocumentSums:
    """Sums over one document; 0, with nan bits per byte, if none of it was read."""

    nats: float
    tokens: int
    n_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes if self.n_bytes else math.nan


@dataclass(frozen=True)
class EvalReport:
    """Sums over all documents, each read from its first token with an empty memory.

    Attributes:
        nats: total negative log-likelihood of `tokens` tokens, `n_bytes` bytes, `words` words.
        position_nats, position_tokens: sums by position in the document; bin i covers positions
            from 2^i (0 in the first bin) to 2^(i+1).
        documents: sums by document, in the order of the corpus.
        losses: nats of every token, one float32 array per document, NaN for unread tokens; None
            without `token_losses`.
    """

    nats: float
    tokens: int
    n_bytes: int
    words: int
    position_nats: list[float]
    position_tokens: list[int]
    documents: list[DocumentSums] = field(default_factory=list, repr=False)
    losses: list[np.ndarray] | None = field(default=None, repr=False)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes

    @property
    def word_perplexity(self) -> float:
        return math.exp(min(self.nats / self.words, 700.0))

    @property
    def loss_by_position(self) -> list[tuple[int, float, int]]:
        """(first position of the bin, mean nats per token, tokens) for every bin with tokens."""
        rows = zip(self.position_nats, self.position_tokens, strict=True)
        return [(2**i, nats / n, n) for i, (nats, n) in enumerate(rows) if n]


@torch.no_grad()
def evaluate(
    model: Model,
    corpus: Corpus,
    *,
    bos: int,
    token_lengths: np.ndarray,
    batch_size: int = 16,
    max_tokens: int | None = None,
    memory: bool = True,
    token_losses: bool = False,
    progress: Callable[[int], None] = lambda tokens: None,
) -> EvalReport:
    """Read documents in parallel rows and sum their negative log-likelihood.

    Args:
        token_lengths: bytes of each id (`Tokenizer.token_lengths`).
        max_tokens: stop after about this many tokens; None reads everything.
        memory: False empties the memory before every segment: the control without recurrence.
        token_losses: also return the loss of every token (4 bytes each).
        progress: called with the number of tokens of each batch.
    """
    batches = SegmentBatches(
        corpus, min(batch_size, len(corpus)), segment_len=model.config.segment_len, bos=bos
    )
    state = model.init_state(len(batches.document))
    bins, counts = np.zeros(64), np.zeros(64, dtype=np.int64)
    nats, tokens, n_bytes = (np.zeros(len(corpus)) for _ in range(3))  # by document
    kept = None
    if token_losses:
        kept = [np.full(n, np.nan, np.float32) for n in np.diff(corpus.offsets)]
    cache = Cache()
    with model.inference():
        for batch in batches:
            begins = batch.begins if memory else torch.ones_like(batch.begins)
            if bool(begins.any()):
                state = state.reset_rows(begins)
            hidden, state = model.hidden(send(batch.inputs, model.device), state, cache)
            state, _ = model.commit(state, cache)
            loss = -model.log_prob(hidden, batch.targets)
            losses, targets = loss.double().cpu().numpy(), batch.targets.numpy()
            scored = targets != IGNORED
            places = batch.offsets[:, None] + np.arange(targets.shape[1])
            which = np.log2(np.maximum(places[scored], 1)).astype(int)
            bins += np.bincount(which, losses[scored], minlength=64)
            counts += np.bincount(which, minlength=64)
            whose = np.broadcast_to(batch.document[:, None], targets.shape)[scored]
            for sums, weights in (
                (nats, losses[scored]),
                (tokens, None),
                (n_bytes, token_lengths[targets[scored]]),
            ):
                sums += np.bincount(whose, weights, minlength=len(corpus))
            if kept is not None:
                for row, document in enumerate(batch.document):
                    kept[document][places[row, scored[row]]] = losses[row, scored[row]]
            progress(int(scored.sum()))
            if max_tokens is not None and tokens.sum() >= max_tokens:
                break
    n, size = int(tokens.sum()), int(n_bytes.sum())
    whole = n == len(corpus.tokens)
    words = corpus.n_words if whole else max(1, round(corpus.n_words * size / corpus.n_bytes))
    last = int(counts.nonzero()[0].max()) + 1
    return EvalReport(
        nats=float(nats.sum()),
        tokens=n,
        n_bytes=size,
        words=words,
        position_nats=bins[:last].tolist(),
        position_tokens=counts[:last].tolist(),
        documents=[
            DocumentSums(float(a), int(b), int(c))
            for a, b, c in zip(nats, tokens, n_bytes, strict=True)
        ],
        losses=kept,
    )
