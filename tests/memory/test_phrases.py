"""Phrases are found wherever one of their spellings stands, in any chunks, and not within words."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamlm.memory.phrases import DIGIT, LETTER, OTHER, Edges, occurrences, share_within

TEXTS = ["a", "b", " ", "1", "2", "ab", " a", "12", "."]  # the vocabulary
FIRST = [OTHER if t[0] in " ." else DIGIT if t[0].isdigit() else LETTER for t in TEXTS]
LAST = [OTHER if t in " ." else DIGIT if t.isdigit() else LETTER for t in TEXTS]
EDGES = Edges(np.array(FIRST, np.int8), np.array(LAST, np.int8))
PHRASES = [
    [(0,), (6,)],  # "a", " a"
    [(5,), (0, 1), (6, 1)],  # "ab", " ab"
    [(7,), (3, 4)],  # "12"
]


def in_chunks(ids: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (ids[start : start + size] for start in range(0, len(ids), size))


def found(ids: np.ndarray, size: int) -> list[int]:
    parts = occurrences(PHRASES, in_chunks(ids, size), EDGES)()
    return [number for part in parts for number in part.tolist()]


def plain(ids: list[int]) -> list[int]:
    """What begins at each token, spelling by spelling."""
    numbers = [-1] * len(ids)
    for number in reversed(range(len(PHRASES))):
        for spelling in PHRASES[number]:
            kinds = FIRST[spelling[0]], LAST[spelling[-1]]
            for at in range(len(ids)):
                end = at + len(spelling)
                joined = at and kinds[0] and LAST[ids[at - 1]] == kinds[0]
                goes_on = end < len(ids) and kinds[1] and FIRST[ids[end]] == kinds[1]
                if tuple(ids[at:end]) == spelling and not joined and not goes_on:
                    numbers[at] = number
    return numbers


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_phrases_are_found_in_any_chunks(size: int) -> None:
    random = np.random.default_rng(size)
    for n in (0, 1, 2, 3, 30, 300):
        ids = random.integers(0, len(TEXTS), n)
        assert found(ids, size) == plain(ids.tolist())


def test_a_number_is_not_found_in_a_longer_one() -> None:
    one, two, space, dot = 3, 4, 2, 8
    assert found(np.array([space, one, two, dot]), 2) == [-1, 2, -1, -1]
    assert found(np.array([space, one, two, one]), 2) == [-1, -1, -1, -1]
    assert found(np.array([two, one, two, dot]), 2) == [-1, -1, -1, -1]


def test_a_word_is_found_behind_a_space_and_without_one() -> None:
    assert found(np.array([8, 0, 8, 6, 8]), 10) == [-1, 0, -1, 0, -1]
    assert found(np.array([5, 6, 1]), 10) == [1, 1, -1]
    assert found(np.array([0, 5]), 10) == [-1, -1]  # "aab"


def test_a_group_is_there_with_all_its_phrases() -> None:
    ids = np.array([8, 0, 2, 1, 8])  # ".a b."
    a, a_b, twelve = [(0,)], [(0, 2, 1)], [(7,), (3, 4)]
    assert share_within(ids, [[a], [a_b], [twelve], [a, a_b]], EDGES) == 0.75
    assert share_within(ids, [[a, twelve]], EDGES) == 0.0
    assert share_within(ids, [], EDGES) == 1.0
