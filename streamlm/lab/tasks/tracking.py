"""Variable tracking: the value of a name that was set through a chain of other names.

After the task of that name in RULER (Hsieh et al. 2024, §3), with one decoy chain.
"""

import numpy as np

from streamlm.lab.tasks.alphabet import Alphabet, distinct
from streamlm.lab.tasks.questions import Questions, joined, paste, placed


def tracking(
    alphabet: Alphabet,
    *,
    n: int,
    segment_len: int,
    distance: int,
    hops: tuple[int, ...] = (1, 2, 3, 4),
    seed: int = 0,
) -> Questions:
    """Sequences with two chains in their first segment and a query for one in their last.

    A chain of h hops has h statements: "a is 7", "b is a", "c is b", …. The query is for the value
    of its last name. The other chain is a decoy of the same length: a model that remembers the
    values but not the names is right half of the time. Chance is that of a model that remembers
    nothing.

    Args:
        n: sequences for each number of hops, with one question each; the label is the hops.
        distance: segments between chains and query; 0 is the same segment.

    Raises:
        ValueError: segments are too short, or there are too few names.
    """
    size = {"n": n, "segment_len": segment_len, "distance": distance, "seed": seed}
    return joined([_tracking(alphabet, hops=h, **size) for h in hops])


def _tracking(
    alphabet: Alphabet, *, n: int, segment_len: int, distance: int, hops: int, seed: int
) -> Questions:
    random = np.random.default_rng([seed, distance, hops])
    layout = alphabet.fill(random, n, (distance + 1) * segment_len)
    names = distinct(random, len(alphabet.keys), n, 2 * hops).reshape(n, hops, 2)
    keys, values = (
        alphabet.keys[names],
        alphabet.values_of(random, names[:, 0]),
    )  # [n, h, 2], [n, 2]
    link, ask = alphabet.phrases["is"], alphabet.phrases["value"]
    statement, question = len(link) + 2, len(ask) + len(link) + 2
    size = {"n": n, "segment_len": segment_len}
    lengths = [statement] * (2 * hops)
    if distance:
        starts = placed(random, lengths, **size, what=f"tracking of {hops} hops")
        (last,) = placed(random, [question], **size, what="the question for a value")
        last = last + distance * segment_len
    else:
        what = f"tracking of {hops} hops and its question"
        *starts, last = placed(random, [*lengths, question], **size, what=what)
    places = np.zeros((n, 2), dtype=np.int64)
    for hop in range(hops):
        swapped = random.random(n) < 0.5  # whether the decoy comes first
        for chain in range(2):
            start = np.where(swapped == bool(chain), starts[2 * hop], starts[2 * hop + 1])
            source = keys[:, hop - 1, chain] if hop else values[:, chain]
            paste(layout, start, keys[:, hop, chain, None])
            paste(layout, start + 1, link)
            at = paste(layout, start + 1 + len(link), source[:, None])
            if not hop:
                places[:, chain] = at[:, 0]
    paste(layout, last, ask)
    paste(layout, last + len(ask), keys[:, -1, 0, None])
    paste(layout, last + len(ask) + 1, link)
    query = paste(layout, last + question - 1, values[:, :1])
    return Questions(
        tokens=layout[:, 1:],
        row=np.arange(n),
        query=query,
        cue=places[:, :1],
        choices=alphabet.choices_of(names[:, 0, 0]),
        label=np.full(n, hops),
    )
