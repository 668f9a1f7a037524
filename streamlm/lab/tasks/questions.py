"""Questions: sequences that ask for what they said before, and where the answer lies by then."""

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

    A place is an index into a sequence. The model reads bos first, so it predicts the token at
    place p in segment p // T, and reads it as the input p + 1, in segment (p + 1) // T.

    Attributes:
        tokens: [N, n] ids, without bos.
        row: [Q] the sequence that each question stands in.
        asked: [Q, A] places of the answer's tokens.
        told: [Q, A] places where each of them was told; the latest, if it was more than once.
        choices: [Q, c] ids that an answer's tokens are of, each as likely as any other.
        label: [Q] what else tells questions apart (the hops of variable tracking); 0 where nothing.
    """

    tokens: np.ndarray
    row: np.ndarray
    asked: np.ndarray
    told: np.ndarray
    choices: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def answers(self) -> np.ndarray:
        """[Q, A] the right ids."""
        found: np.ndarray = self.tokens[self.row[:, None], self.asked]
        return found

    @property
    def chance(self) -> float:
        """Share of whole answers that are right for who knows all but what was told."""
        return float(self.choices.shape[1]) ** -self.asked.shape[1]

    def retold(self, seed: int = 0) -> "Questions":
        """The control: the same sequences and questions, but each was told another of its choices.

        What a model makes of the right answers here, it makes without having been told them.
        """
        random = np.random.default_rng(seed)
        tokens = self.tokens.copy()
        right = self.choices[:, None, :] == self.answers[:, :, None]  # [Q, A, c]
        n = self.choices.shape[1]
        other = (right.argmax(axis=2) + random.integers(1, n, self.told.shape)) % n
        tokens[self.row[:, None], self.told] = np.take_along_axis(self.choices, other, axis=1)
        return replace(self, tokens=tokens)

    def distance(self, segment_len: int) -> np.ndarray:
        """[Q] segments from where the answer was told to where it is asked; the largest of A."""
        apart = self.asked // segment_len - (self.told + 1) // segment_len
        return np.asarray(apart.max(axis=1))

    def regions(self, config: ModelConfig) -> np.ndarray:
        """[Q] index into REGIONS of where the answer lies; the furthest of its tokens counts.

        "through layers" is out of every slot, but for what later slots of deeper layers took from
        it; "beyond reach" cannot change the logits.
        """
        length = config.segment_len
        opened = self.asked // length * length  # input with which the open segment began
        ago = opened - (self.told + 1)  # below 0: in the open segment
        span = config.memory_len + config.compression_rate * config.compressed_len
        earliest = opened
        for _ in range(config.n_layers):
            # A slot was computed when its own segment was open, which saw as far back again.
            earliest = earliest // length * length - span
        found = np.select(
            [ago < 0, ago < config.memory_len, ago < span, self.told + 1 >= earliest],
            [0, 1, 2, 3],
            4,
        )
        return np.asarray(found.max(axis=1))

    def compressions(self, config: ModelConfig) -> np.ndarray:
        """[Q] how often the slot of the answer was compressed; -1 where it has none any more."""
        times: np.ndarray = np.array([0, 0, 1, -1, -1])[self.regions(config)]
        return times

    def corpus(self) -> Corpus:
        """The sequences as documents of which only the answers are targets, to train on."""
        n, length = self.tokens.shape
        scored = np.zeros((n, length), dtype=bool)
        scored[self.row[:, None], self.asked] = True
        tokens = self.tokens.astype(np.int32).ravel()
        offsets = np.arange(n + 1) * length
        return Corpus(tokens, offsets, tokens.size, tokens.size, scored=scored.ravel())


def spans(config: ModelConfig) -> tuple[int, int]:
    """How many inputs before the open segment lie in a slot, and how many can matter at all.

    The latter is L·(M + c·C), and somewhat more where M + c·C is no multiple of T.
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
    """Where pieces of these lengths begin, one after another in one segment: a column [n] each.

    Gaps are random. Column 0 stays free: bos stands there, and what it holds was predicted in the
    segment before.

    Raises:
        ValueError: `what` does not fit in a segment.
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
    """Write piece [n, k], or [k] in every row, into layout from columns start [n] on.

    Returns:
        [n, k] the places of it. They count as `Questions` does: the layout has bos at its first
        column, so they are one less than columns.
    """
    at = start[:, None] + np.arange(piece.shape[-1])
    np.put_along_axis(layout, at, np.broadcast_to(piece, at.shape), axis=1)
    return at - 1


def joined(parts: Sequence[Questions]) -> Questions:
    """Questions about sequences of one length, one after another."""
    rows = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    return Questions(
        tokens=np.concatenate([part.tokens for part in parts]),
        row=np.concatenate([part.row + first for part, first in zip(parts, rows, strict=True)]),
        asked=np.concatenate([part.asked for part in parts]),
        told=np.concatenate([part.told for part in parts]),
        choices=np.concatenate([part.choices for part in parts]),
        label=np.concatenate([part.label for part in parts]),
    )
