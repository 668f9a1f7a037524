"""Loss by word frequency: does a model remember rare words, or does it know common ones?

Rae et al. 2020 split the perplexity of WikiText-103 so, by frequency in the training text; here the
counts may come from any text, by default from the one that is read.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamlm.training.data import Corpus
from tokenizer import Tokenizer

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def count_words(text: str) -> Counter[str]:
    """How often each word occurs, without regard to case; a word is a run of letters and digits."""
    return Counter(found.group().lower() for found in WORD.finditer(text))


def loss_by_frequency(
    corpus: Corpus,
    readings: Mapping[str, Sequence[np.ndarray]],
    tokenizer: Tokenizer,
    *,
    counts: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """Nats per word for words of about the same frequency.

    A token belongs to the word that its last byte lies in, so a space before a word counts to it;
    what belongs to no word, such as punctuation, is a row of its own, per token.

    Args:
        readings: name → nats of every token, one array per document, NaN where it was not read
            (`EvalReport.losses`). All must have read the same tokens.
        counts: of each word elsewhere; by default in `corpus` itself.

    Returns:
        Rows by rising frequency: "from" and "to" (excluded), "words", "nats" by reading; bins are
        powers of ten, and "from" is None in the last row, of what belongs to no word.
    """
    texts = [tokenizer.decode_bytes(corpus.document(i)) for i in range(len(corpus))]
    if counts is None:
        counts = sum((count_words(text.decode(errors="replace")) for text in texts), Counter())
    bins = 2 + len(str(max(counts.values(), default=1)))  # never seen, 1-9, 10-99, …, no word
    words = np.zeros(bins, dtype=np.int64)
    nats = {name: np.zeros(bins) for name in readings}
    for index, data in enumerate(texts):
        ends = np.cumsum(tokenizer.token_lengths[corpus.document(index)])
        losses = {name: np.asarray(found[index], np.float64) for name, found in readings.items()}
        read = ~np.isnan(next(iter(losses.values())))
        spans, frequencies = _spans(data, counts)
        # The word that the last byte of each token lies in; none where it lies between two.
        word = np.searchsorted(spans[:, 0], ends - 1, side="right") - 1
        inside = (word >= 0) & (ends <= spans[np.maximum(word, 0), 1]) if len(spans) else word >= 0
        of_token = np.full(len(ends), bins - 1)
        if len(spans):
            places = np.where(frequencies > 0, 1 + np.log10(np.maximum(frequencies, 1)), 0)
            of_token[inside] = places.astype(int)[word[inside]]
        for name, found in losses.items():
            nats[name] += np.bincount(of_token[read], found[read], minlength=bins)
        # A word counts once, at its last token; what is no word, token by token.
        last = np.append(word[1:] != word[:-1], True) | ~np.append(inside[1:], False)
        words += np.bincount(of_token[read & (last | ~inside)], minlength=bins)
    edges = [0, 1, *(10**i for i in range(1, bins - 1))]
    return [
        {
            "from": edges[i] if i < bins - 1 else None,
            "to": edges[i + 1] if i < bins - 1 else None,
            "words": int(words[i]),
            "nats": {name: float(sums[i] / words[i]) for name, sums in nats.items()},
        }
        for i in range(bins)
        if words[i]
    ]


def _spans(data: bytes, counts: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """First and last-but-one byte of each word, [n, 2], and how often each occurs, [n]."""
    text = data.decode(errors="surrogateescape")
    size = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    escaped = (size >= 0xDC80) & (size <= 0xDCFF)  # one byte that is no text
    widths = 1 + (size > 0x7F) + (size > 0x7FF).astype(int) + (size > 0xFFFF)
    starts = np.concatenate([[0], np.cumsum(np.where(escaped, 1, widths))])
    found = list(WORD.finditer(text))
    spans = np.array([match.span() for match in found], dtype=np.int64).reshape(-1, 2)
    frequencies = np.array([counts[match.group().lower()] for match in found], dtype=np.int64)
    return starts[spans], frequencies
