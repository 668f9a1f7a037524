"""Loss by word frequency: how memory helps with rare and with frequent words.

Rae et al. 2020 split the perplexity of WikiText-103 by frequency in the training text; here the
counts can come from any text, by default from the evaluated one.
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
    """The count of each word, case-insensitive; a word is a run of letters and digits."""
    return Counter(match.group().lower() for match in WORD.finditer(text))


def loss_by_frequency(
    corpus: Corpus,
    readings: Mapping[str, Sequence[np.ndarray]],
    tokenizer: Tokenizer,
    *,
    counts: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """Nats per word, by word frequency in bins of powers of ten.

    A token belongs to the word that contains its last byte, so a space before a word counts to it.
    Tokens outside words, such as punctuation, form a row of their own, per token.

    Args:
        readings: name → nats of every token, one array per document, NaN for unread tokens
            (`EvalReport.losses`). All readings cover the same tokens.
        counts: of each word; by default in `corpus` itself.

    Returns:
        Rows by rising frequency: "from" and "to" (excluded), "words", "nats" by reading; "from" is
        None in the last row, of tokens outside words.
    """
    texts = [tokenizer.decode_bytes(corpus.document(i)) for i in range(len(corpus))]
    if counts is None:
        counts = sum((count_words(text.decode(errors="replace")) for text in texts), Counter())
    bins = 2 + len(str(max(counts.values(), default=1)))  # never seen, 1-9, 10-99, …, no word
    words = np.zeros(bins, dtype=np.int64)
    nats = {name: np.zeros(bins) for name in readings}
    for index, data in enumerate(texts):
        ends = np.cumsum(tokenizer.token_lengths[corpus.document(index)])
        losses = {
            name: np.asarray(nats_of[index], np.float64) for name, nats_of in readings.items()
        }
        read = ~np.isnan(next(iter(losses.values())))
        spans, frequencies = _spans(data, counts)
        # The word that contains the last byte of each token, if any.
        word = np.searchsorted(spans[:, 0], ends - 1, side="right") - 1
        inside = (word >= 0) & (ends <= spans[np.maximum(word, 0), 1]) if len(spans) else word >= 0
        of_token = np.full(len(ends), bins - 1)
        if len(spans):
            places = np.where(frequencies > 0, 1 + np.log10(np.maximum(frequencies, 1)), 0)
            of_token[inside] = places.astype(int)[word[inside]]
        for name, values in losses.items():
            nats[name] += np.bincount(of_token[read], values[read], minlength=bins)
        # A word counts once, at its last token; outside words, every token counts.
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
    """The byte range of each word, start and end, [n, 2], and its count, [n]."""
    text = data.decode(errors="surrogateescape")
    size = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    escaped = (size >= 0xDC80) & (size <= 0xDCFF)  # a byte that is no text
    widths = 1 + (size > 0x7F) + (size > 0x7FF).astype(int) + (size > 0xFFFF)
    starts = np.concatenate([[0], np.cumsum(np.where(escaped, 1, widths))])
    matches = list(WORD.finditer(text))
    spans = np.array([match.span() for match in matches], dtype=np.int64).reshape(-1, 2)
    frequencies = np.array([counts[match.group().lower()] for match in matches], dtype=np.int64)
    return starts[spans], frequencies
