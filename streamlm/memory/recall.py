"""Recall: where a question's attention peaks among all keys that a stream ever had.

A few heads of a language model attend from a question to the place of its answer, however far back
(retrieval heads, Wu et al. 2024). The attention of the question's queries over all keys of these
heads is computed exactly, in one pass over blocks of keys. Only the mass of each group of `GROUP`
keys is kept, 4 bytes for a head, query and group; the groups that may hold the best places are then
read again.

The score of a place is the mean, over heads and queries, of the square root of the mass on its
`WIDTH` keys. The root prefers a place that all words of the question attend to. A plain mean
prefers one that a single word attends to, such as another person of the same name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# (start, stop) → blocks of consecutive keys, ascending: the position of the first, and [n, K, E].
ReadKeys = Callable[[int, int], Iterator[tuple[int, Tensor]]]
GROUP = 64  # keys whose mass is kept as one number
WIDTH = 33  # keys of a place; at most GROUP


@dataclass(frozen=True)
class Place:
    """A place in a stream: the position of the key in its middle, and its score, 0 to 1."""

    position: int
    score: float


def place_scores(attention: Tensor) -> Tensor:
    """Scores of the places around consecutive keys: attention [queries, n] → [n] float64."""
    sums = F.pad(attention.double().cumsum(dim=1), (1, 0))
    key, reach, n = torch.arange(attention.shape[1]), WIDTH // 2, attention.shape[1]
    mass = sums[:, (key + reach + 1).clamp(max=n)] - sums[:, (key - reach).clamp(min=0)]
    return mass.clamp(min=0).sqrt().mean(dim=0)


class KeySearch:
    """The attention of one question over the keys of a stream.

    Args:
        queries: [H, w, E], rotated to one distance from the keys, and scaled.
        key_heads: for each of the H heads, the index of its keys among the K of a block.
        read: reads keys. Those that it leaves out do not exist.
        start, stop: positions of the keys to search.
    """

    def __init__(
        self,
        queries: Tensor,
        key_heads: Sequence[int],
        read: ReadKeys,
        *,
        start: int,
        stop: int,
    ) -> None:
        self._read = read
        # The queries of each of the K heads: its keys are multiplied where they lie.
        of_head: dict[int, list[Tensor]] = {}
        for head, some in zip(key_heads, queries, strict=True):
            of_head.setdefault(head, []).append(some)
        self._queries = {head: torch.cat(some) for head, some in sorted(of_head.items())}
        self._start, self._stop = start, stop
        masses: list[Tensor] = []
        self._firsts: list[int] = []  # position of each group's first key
        for first, keys in self._blocks(start, stop):
            scores = self._scores(keys)
            padded = F.pad(scores, (0, -len(keys) % GROUP), value=-torch.inf)
            masses.append(padded.unflatten(1, (-1, GROUP)).logsumexp(dim=2))
            self._firsts += range(first, first + len(keys), GROUP)
        self._mass = torch.cat(masses, dim=1) if masses else queries.new_zeros(0, 0)  # [H·w, G]
        self._total = self._mass.logsumexp(dim=1, keepdim=True) if masses else self._mass

    def best(self, k: int) -> list[Place]:
        """The k places with the highest scores, best first, at least `WIDTH` keys apart."""
        found: list[Place] = []
        if not self._firsts:
            return found
        mass = (self._mass - self._total).exp()
        # A place lies in one group or in two neighbours, so its mass is at most that of both.
        pairs = zip(self._firsts, self._firsts[1:], strict=False)
        beside = torch.tensor([a + GROUP == b for a, b in pairs], device=mass.device)
        bound = (mass + F.pad(mass[:, 1:] * beside, (0, 1))).sqrt_().mean(dim=0)
        for group in bound.argsort(descending=True).tolist():
            if len(found) == k and float(bound[group]) <= found[-1].score:
                break
            first = self._firsts[group]
            found = _apart([*found, *self._places(first, first + 2 * GROUP, k)], k)
        return found

    def within(self, start: int, stop: int) -> Place | None:
        """The best place whose middle is within [start, stop); None without keys."""
        return next(iter(self._places(start, stop, 1)), None)

    def _places(self, start: int, stop: int, k: int) -> list[Place]:
        """The k best places whose middle is within [start, stop)."""
        found: list[Place] = []
        reach = WIDTH // 2
        low, high = max(self._start, start - reach), min(self._stop, stop + reach)
        for first, keys in _whole(self._read(low, high)) if low < high else ():
            score = place_scores((self._scores(keys) - self._total).exp())
            middle = torch.arange(first, first + len(keys), device=score.device)
            score = score.masked_fill((middle < start) | (middle >= stop), -1.0)
            for _ in range(k):
                at = int(score.argmax())
                if float(score[at]) < 0:
                    break
                found.append(Place(first + at, float(score[at])))
                score[max(0, at - WIDTH + 1) : at + WIDTH] = -1.0
        return _apart(found, k)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks of whole groups; one that is not whole ends at a gap or with the keys."""
        held: tuple[int, Tensor] | None = None
        for first, keys in self._read(start, stop):
            if held is not None and held[0] + len(held[1]) == first:
                first, keys = held[0], torch.cat([held[1], keys])
            elif held is not None:
                yield held
            n = len(keys) // GROUP * GROUP
            if n:
                yield first, keys[:n]
            held = (first + n, keys[n:]) if n < len(keys) else None
        if held is not None:
            yield held

    def _scores(self, keys: Tensor) -> Tensor:
        """[n, K, E] → [H·w, n], head by head of the K."""
        return torch.cat([some @ keys[:, head].mT for head, some in self._queries.items()])


def _whole(pieces: Iterator[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """Pieces joined where one begins at the end of another."""
    joined: list[tuple[int, Tensor]] = []
    for first, keys in pieces:
        if joined and joined[-1][0] + len(joined[-1][1]) == first:
            first, keys = joined[-1][0], torch.cat([joined.pop()[1], keys])
        joined.append((first, keys))
    return joined


def _apart(places: list[Place], k: int) -> list[Place]:
    """The k best places that are `WIDTH` keys apart; of two that are not, the better one."""
    kept: list[Place] = []
    for place in sorted(places, key=lambda each: (-each.score, each.position)):
        if all(abs(place.position - other.position) >= WIDTH for other in kept):
            kept.append(place)
    return kept[:k]
