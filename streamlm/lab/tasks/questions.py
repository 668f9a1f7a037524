"""Questions about sequences: cues, queries, and the region of memory that holds the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from streamlm.config import ModelConfig
from streamlm.training.data import Corpus

Region = Literal["open segment", "memory", "compressed memory", "through layers", "beyond reach"]
REGIONS: tuple[Region, ...] = (
    "open segment",
    "memory",
    "compressed memory",
    "through layers",
    "beyond reach",
)


@dataclass(frozen=True, eq=False)
class Questions:
    """Sequences of equal length, and the questions in them.

    A position is an index into a sequence. The model reads bos first, so it predicts the token at
    position p in segment p // T and reads it as input p + 1, in segment (p + 1) // T.

    Attributes:
        tokens: [N, n] ids, without bos.
        row: [Q] the sequence of each question.
        query: [Q, A] positions at which the answer's tokens are predicted.
        cue: [Q, A] positions at which the sequence gave each of them; the latest, if several.
        choices: [Q, c] ids that the answer's tokens are drawn from, equally likely.
        label: [Q] a group of questions (the hops of variable tracking); 0 without groups.
    """

    tokens: np.ndarray
    row: np.ndarray
    query: np.ndarray
    cue: np.ndarray
    choices: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def answers(self) -> np.ndarray:
        """[Q, A] the right ids."""
        ids: np.ndarray = self.tokens[self.row[:, None], self.query]
        return ids

    @property
    def chance(self) -> float:
        """The probability that an answer is right for a model that knows all but the cue."""
        return float(self.choices.shape[1]) ** -self.query.shape[1]

    def counterfactual(self, seed: int = 0) -> "Questions":
        """The control: the same questions, but every cue gives another of its choices.

        The log-probability of the right answer is here that without its cue.
        """
        random = np.random.default_rng(seed)
        tokens = self.tokens.copy()
        right = self.choices[:, None, :] == self.answers[:, :, None]  # [Q, A, c]
        n = self.choices.shape[1]
        other = (right.argmax(axis=2) + random.integers(1, n, self.cue.shape)) % n
        tokens[self.row[:, None], self.cue] = np.take_along_axis(self.choices, other, axis=1)
        return replace(self, tokens=tokens)

    def distance(self, segment_len: int) -> np.ndarray:
        """[Q] segments from cue to query, the largest over the answer's tokens."""
        apart = self.query // segment_len - (self.cue + 1) // segment_len
        return np.asarray(apart.max(axis=1))

    def regions(self, config: ModelConfig) -> np.ndarray:
        """[Q] index into REGIONS of the region that holds the cue, the furthest over its tokens.

        "through layers": no slot holds the cue, but later slots of deeper layers have read it.
        "beyond reach": the cue cannot affect the logits.
        """
        length = config.segment_len
        opened = self.query // length * length  # first input of the open segment
        ago = opened - (self.cue + 1)  # negative in the open segment
        span = config.memory_len + config.compression_rate * config.compressed_len
        earliest = opened
        for _ in range(config.n_layers):
            # A slot was computed in its own open segment, which saw as far back again.
            earliest = earliest // length * length - span
        region = np.select(
            [ago < 0, ago < config.memory_len, ago < span, self.cue + 1 >= earliest],
            [0, 1, 2, 3],
            4,
        )
        return np.asarray(region.max(axis=1))

    def compressions(self, config: ModelConfig) -> np.ndarray:
        """[Q] how often the cue's slot was compressed; -1 if no slot holds it."""
        times: np.ndarray = np.array([0, 0, 1, -1, -1])[self.regions(config)]
        return times

    def corpus(self) -> Corpus:
        """The sequences as training documents whose only targets are the answers."""
        n, length = self.tokens.shape
        scored = np.zeros((n, length), dtype=bool)
        scored[self.row[:, None], self.query] = True
        tokens = self.tokens.astype(np.int32).ravel()
        offsets = np.arange(n + 1) * length
        return Corpus(tokens, offsets, tokens.size, tokens.size, scored=scored.ravel())


def spans(config: ModelConfig) -> tuple[int, int]:
    """The inputs before the open segment that slots cover, and those that can affect the logits.

    The latter is L·(M + c·C), and somewhat more if M + c·C is no multiple of T.
    """
    length = config.segment_len
    span = config.memory_len + config.compression_rate * config.compressed_len
    earliest = 0
    for _ in range(config.n_layers):
        # A slot was computed when its own segment was open, which saw as far back again.
        earliest = earliest // length * length - span
    return span, -earliest


def placed(
    random: np.random.Generator, lengths: Sequence[int], *, n: int, segment_len: int, what: str
) -> list[np.ndarray]:
    """Start columns of pieces of these lengths in one segment, in order: [n] for each piece.

    Gaps are random. Column 0 stays free: it holds bos, or a token predicted in the segment before.

    Raises:
        ValueError: the pieces, called `what`, do not fit in a segment.
    """
    free = segment_len - 1 - sum(lengths)
    if free < 0:
        raise ValueError(
            f"{what} takes {sum(lengths)} tokens; allowed: less than a segment of {segment_len}"
        )
    before = np.sort(random.integers(0, free + 1, (n, len(lengths))), axis=1)
    taken = np.cumsum([1, *lengths[:-1]])
    return list((before + taken).T)


def paste(layout: np.ndarray, start: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Write piece [n, k], or [k] in every row, into layout at columns start [n].

    Returns:
        [n, k] positions of the piece as in `Questions`: one less than its columns, because column 0
        of the layout is bos.
    """
    at = start[:, None] + np.arange(piece.shape[-1])
    np.put_along_axis(layout, at, np.broadcast_to(piece, at.shape), axis=1)
    return at - 1


def joined(parts: Sequence[Questions]) -> Questions:
    """The concatenation of questions about sequences of one length."""
    rows = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    return Questions(
        tokens=np.concatenate([part.tokens for part in parts]),
        row=np.concatenate([part.row + first for part, first in zip(parts, rows, strict=True)]),
        query=np.concatenate([part.query for part in parts]),
        cue=np.concatenate([part.cue for part in parts]),
        choices=np.concatenate([part.choices for part in parts]),
        label=np.concatenate([part.label for part in parts]),
    )
