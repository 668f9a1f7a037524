"""Associative recall: pairs of name and value, queried after a known number of segments.

Multi-query associative recall (Arora et al. 2023) as a stream: every segment holds new pairs and
queries for earlier ones; a query is the name, its answer the value. If any name can have any value,
a model must learn to bind the two, which takes small models long; with the families of `Alphabet`,
it need only remember which of the name's values was given.
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
    """Sequences of pairs "name value", in which a name occurs once or twice.

    A segment has `pairs` new pairs and as many questions; in the first segments, a question whose
    pair would lie before the sequence is filler.

    Args:
        n: sequences.
        distances: segments from cue to query, drawn uniformly; 0 is the same segment.
        segments: of a sequence; by default two more than the largest distance.
        pairs: new pairs per segment; by default as many as fit.

    Raises:
        ValueError: segments are too short for the pairs, or there are too few names.
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
    # Each column of pairs has one distance, so that queries never collide.
    apart = np.array(distances)[random.integers(0, len(distances), (n, 1, p))]
    order = random.permuted(np.broadcast_to(np.arange(slots), (n, segments, slots)), axis=2)
    cue, query = order[..., :p], order[..., p : 2 * p]
    within = apart == 0
    cue, query = (
        np.where(within, np.minimum(cue, query), cue),
        np.where(within, np.maximum(cue, query), query),
    )
    begin = np.arange(segments)[None, :, None] * segment_len
    cue, query = begin + 2 + 2 * cue, begin + 2 + 2 * query  # [n, segments, p] columns of names
    rows = np.arange(n)[:, None, None]
    layout[rows, cue], layout[rows, cue + 1] = keys, values
    row, at, pair = np.nonzero(
        np.broadcast_to(np.arange(segments)[None, :, None] >= apart, keys.shape)
    )
    source = at - apart[row, 0, pair]
    layout[row, query[row, at, pair]] = keys[row, source, pair]
    layout[row, query[row, at, pair] + 1] = values[row, source, pair]
    # A value follows its name by one column; a position is one less than its column.
    return Questions(
        tokens=layout[:, 1:],
        row=row,
        query=query[row, at, pair][:, None],
        cue=cue[row, source, pair][:, None],
        choices=alphabet.choices_of(names[row, source, pair]),
        label=np.zeros(len(row), dtype=np.int64),
    )
