"""Passkey: some digits in filler, asked for at the end (Mohtashami & Jaggi 2023)."""

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
    """Sequences that tell one passkey in their first segment and ask for it in their last.

    Args:
        n: sequences, with a question each.
        distance: segments between the two; 0 is within a segment.
        digits: of a passkey, each drawn evenly; the answer is all of them.

    Raises:
        ValueError: segments are too short for it.
    """
    random = np.random.default_rng([seed, distance])
    layout = alphabet.fill(random, n, (distance + 1) * segment_len)
    key = alphabet.digits[random.integers(0, 10, (n, digits))]
    tell, ask = alphabet.phrases["tell"], alphabet.phrases["ask"]
    lengths = [len(tell) + digits, len(ask) + digits]
    size = {"n": n, "segment_len": segment_len}
    if distance:
        (first,) = placed(random, lengths[:1], **size, what="a passkey")
        (last,) = placed(random, lengths[1:], **size, what="the question for a passkey")
        last = last + distance * segment_len
    else:
        first, last = placed(random, lengths, **size, what="a passkey and its question")
    paste(layout, first, tell)
    told = paste(layout, first + len(tell), key)
    paste(layout, last, ask)
    asked = paste(layout, last + len(ask), key)
    return Questions(
        tokens=layout[:, 1:],
        row=np.arange(n),
        asked=asked,
        told=told,
        choices=np.broadcast_to(alphabet.digits, (n, 10)),
        label=np.zeros(n, dtype=np.int64),
    )
