"""Copying: a run of symbols is repeated after a known number of segments."""

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
    """Sequences with a run in their first segment that is repeated in their last.

    The first symbol of the repetition prompts the copy; each of the others is a question. The i-th
    symbol is drawn from every `length`-th value, so that the symbols of a run are distinct and
    independent: copied symbols do not predict the rest.

    Args:
        n: sequences.
        distance: segments between run and repetition; 0 is the same segment.
        length: symbols of a run, at least 2.

    Raises:
        ValueError: segments are too short, or there are too few values.
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
    cue, query = paste(layout, first, run), paste(layout, last, run)
    choices = np.broadcast_to(groups.T[1:], (n, length - 1, count))
    return Questions(
        tokens=layout[:, 1:],
        row=np.repeat(np.arange(n), length - 1),
        query=query[:, 1:].reshape(-1, 1),
        cue=cue[:, 1:].reshape(-1, 1),
        choices=choices.reshape(-1, count),
        label=np.zeros(n * (length - 1), dtype=np.int64),
    )
