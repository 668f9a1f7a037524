"""Passkey retrieval: digits in filler, queried at the end (Mohtashami & Jaggi 2023)."""

import numpy as np

from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.questions import Questions, paste, placed


def passkey(
    alphabet: Alphabet,
    *,
    n: int,
    segment_len: int,
    distance: int,
    digits: int = 5,
    seed: int = 0,
) -> Questions:
    """Sequences with a passkey in their first segment and a query for it in their last.

    Args:
        n: sequences, with one question each.
        distance: segments between cue and query; 0 is the same segment.
        digits: of a passkey, drawn uniformly; the answer is all of them.

    Raises:
        ValueError: segments are too short.
    """
    random = np.random.default_rng([seed, distance])
    layout = alphabet.fill(random, n, (distance + 1) * segment_len)
    key = alphabet.digits[random.integers(0, 10, (n, digits))]
    before, prompt = alphabet.phrases["cue"], alphabet.phrases["query"]
    lengths = [len(before) + digits, len(prompt) + digits]
    size = {"n": n, "segment_len": segment_len}
    if distance:
        (first,) = placed(random, lengths[:1], **size, what="a passkey")
        (last,) = placed(random, lengths[1:], **size, what="the question for a passkey")
        last = last + distance * segment_len
    else:
        first, last = placed(random, lengths, **size, what="a passkey and its question")
    paste(layout, first, before)
    cue = paste(layout, first + len(before), key)
    paste(layout, last, prompt)
    query = paste(layout, last + len(prompt), key)
    return Questions(
        tokens=layout[:, 1:],
        row=np.arange(n),
        query=query,
        cue=cue,
        choices=np.broadcast_to(alphabet.digits, (n, 10)),
        label=np.zeros(n, dtype=np.int64),
    )
