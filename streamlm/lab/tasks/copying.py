"""Copying: a run of symbols comes again after a known number of segments."""

import numpy as np

from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.questions import Questions, paste, placed


def copying(
    alphabet: Alphabet,
    *,
    n: int,
    segment_len: int,
    distance: int,
    length: int = 8,
    seed: int = 0,
) -> Questions:
    """Sequences with one run in their first segment, and again in their last.

    The first symbol of the second run is the cue; each of the others is a question. The i-th symbol
    of a run is one of every `length`-th value, so that symbols never repeat and yet are
    independent: those copied already say nothing about the rest.

    Args:
        n: sequences.
        distance: segments between the two; 0 is within a segment.
        length: symbols of a run, at least 2.

    Raises:
        ValueError: segments are too short for it, or there are not enough values.
    """
    random = np.random.default_rng([seed, distance])
    count = len(alphabet.values) // length
    if length < 2 or count < 2:
        most = len(alphabet.values) // 2
        raise ValueError(f"length = {length}; allowed: 2 to {most}, half of the values")
    layout = alphabet.fill(random, n, (distance + 1) * segment_len)
    groups = alphabet.values[: count * length].reshape(count, length)
    run = groups[random.integers(0, count, (n, length)), np.arange(length)]
    size = {"n": n, "segment_len": segment_len}
    if distance:
        (first,) = placed(random, [length], **size, what="a run")
        (last,) = placed(random, [length], **size, what="a run")
        last = last + distance * segment_len
    else:
        first, last = placed(random, [length, length], **size, what="a run and its copy")
    told, asked = paste(layout, first, run), paste(layout, last, run)
    choices = np.broadcast_to(groups.T[1:], (n, length - 1, count))
    return Questions(
        tokens=layout[:, 1:],
        row=np.repeat(np.arange(n), length - 1),
        asked=asked[:, 1:].reshape(-1, 1),
        told=told[:, 1:].reshape(-1, 1),
        choices=choices.reshape(-1, count),
        label=np.zeros(n * (length - 1), dtype=np.int64),
    )
