"""Associative recall: many pairs, each asked for once more after a known number of segments.

Multi-query associative recall (Arora et al. 2023), as a stream: every segment holds new pairs and
asks for earlier ones, and a question is the name alone; what must follow is its value. Where any
name may stand for any value, a model must also bind the two, which takes small ones long to
discover; with the families of `Alphabet`, it need only remember which of a name's values was told.
"""

from collections.abc import Sequence

import numpy as np

from streamlm.lab.tasks.alphabet import Alphabet, distinct
from streamlm.lab.tasks.questions import Questions


def recall(
    alphabet: Alphabet,
    *,
    n: int,
    segment_len: int,
    distances: Sequence[int],
    segments: int | None = None,
    pairs: int | None = None,
    seed: int = 0,
) -> Questions:
    """Sequences of pairs "name value"; a name comes twice in its sequence, or once.

    A segment has `pairs` new pairs and as many questions, but for the first segments, where a
    question whose pair would lie before the beginning is filler.

    Args:
        n: sequences.
        distances: segments between a pair and its question, drawn evenly; 0 is within a segment.
        segments: of a sequence; by default two more than the largest distance.
        pairs: new pairs of a segment; by default as many as fit.

    Raises:
        ValueError: segments are too short for the pairs, or there are not enough names.
    """
    random = np.random.default_rng(seed)
    segments = max(distances) + 2 if segments is None else segments
    slots = segment_len // 2 - 1  # the first two tokens of a segment are filler: bos is one
    room = min(slots // 2, len(alphabet.keys) // segments)
    p = room if pairs is None else pairs
    if not 1 <= p <= room:
        raise ValueError(f"{p} pairs a segment; allowed: 1 to {room} ({segments} segments)")
    layout = alphabet.fill(random, n, segments * segment_len)
    names = distinct(random, len(alphabet.keys), n, segments * p).reshape(n, segments, p)
    keys, values = alphabet.keys[names], alphabet.values_of(random, names)
    # Every column j of pairs is asked at a distance of its own: questions never clash.
    apart = np.array(distances)[random.integers(0, len(distances), (n, 1, p))]
    order = random.permuted(np.broadcast_to(np.arange(slots), (n, segments, slots)), axis=2)
    told, asked = order[..., :p], order[..., p : 2 * p]
    within = apart == 0
    told, asked = (
        np.where(within, np.minimum(told, asked), told),
        np.where(within, np.maximum(told, asked), asked),
    )
    begin = np.arange(segments)[None, :, None] * segment_len
    told, asked = begin + 2 + 2 * told, begin + 2 + 2 * asked  # [n, segments, p] columns of names
    rows = np.arange(n)[:, None, None]
    layout[rows, told], layout[rows, told + 1] = keys, values
    row, at, pair = np.nonzero(
        np.broadcast_to(np.arange(segments)[None, :, None] >= apart, keys.shape)
    )
    source = at - apart[row, 0, pair]
    layout[row, asked[row, at, pair]] = keys[row, source, pair]
    layout[row, asked[row, at, pair] + 1] = values[row, source, pair]
    # A value stands one column behind its name; a place is one less than a column.
    return Questions(
        tokens=layout[:, 1:],
        row=row,
        asked=asked[row, at, pair][:, None],
        told=told[row, source, pair][:, None],
        choices=alphabet.choices_of(names[row, source, pair]),
        label=np.zeros(len(row), dtype=np.int64),
    )
