"""Lexical search against a plain count, in any chunks, and its edges."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from streamlm.memory.lexical import SATURATION, Passage, Terms, search


def in_chunks(ids: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (ids[start : start + size] for start in range(0, len(ids), size))


def scores(query: list[int], ids: list[int], span: int) -> list[float]:
    """The score of the window that begins at every token, counted plainly."""
    blocks = [ids[start : start + span] for start in range(0, len(ids), span)]
    found = []
    for start in range(max(1, len(ids) - span + 1)):
        window, total = ids[start : start + span], 0.0
        for term in set(query):
            there = sum(term in block for block in blocks)
            rarity = math.log1p((len(blocks) - there + 0.5) / (there + 0.5))
            count = window.count(term)
            total += rarity * count * (SATURATION + 1) / (count + SATURATION)
        found.append(total)
    return found


@pytest.mark.parametrize("size", [4, 8, 28, 1000])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 60, 61])
def test_the_best_window_is_that_of_a_plain_count(n: int, size: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(20):
        ids = random.integers(0, 12, n)
        query = random.integers(0, 14, 3)
        wanted = scores(query.tolist(), ids.tolist(), 4)
        found = search(query, in_chunks(ids, size), k=3, span=4)
        if not max(wanted):
            assert found == []
            continue
        assert found[0].score == pytest.approx(max(wanted))
        for each in found:
            assert each.score == pytest.approx(wanted[each.start])
            assert each.stop == min(each.start + 4, n)
        ranked = sorted(found, key=lambda each: each.start)
        assert all(a.stop <= b.start for a, b in pairwise(ranked))
        assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)


def test_a_rare_token_outweighs_frequent_ones() -> None:
    ids = np.tile([1, 2, 3, 4], 100)
    ids[250] = 99
    (best, *_) = search(np.array([1, 2, 99]), in_chunks(ids, 64), k=2, span=16)
    assert best.start <= 250 < best.stop


def test_matches_are_in_the_middle_of_a_passage() -> None:
    ids = np.zeros(400, np.int64)
    ids[200:202] = [7, 8]
    (found,) = search(np.array([7, 8]), in_chunks(ids, 64), k=5, span=32)
    assert found.start < 190 and found.stop > 212


def test_a_match_across_chunks_is_found() -> None:
    ids = np.zeros(256, np.int64)
    ids[63], ids[64] = 7, 8
    (found, *_) = search(np.array([7, 8]), in_chunks(ids, 64), k=1, span=16)
    assert found.start <= 63 and found.stop > 64


def test_nothing_matches() -> None:
    ids = np.arange(100)
    assert search(np.array([500]), in_chunks(ids, 16), k=3, span=8) == []
    assert search(np.zeros(0, np.int64), in_chunks(ids, 16), k=3, span=8) == []
    assert search(np.array([1]), in_chunks(ids[:0], 16), k=3, span=8) == []
    assert search(np.array([0]), in_chunks(ids[:1], 16), k=3, span=8) == [
        Passage(0, 1, pytest.approx(math.log1p(0.5 / 1.5)))
    ]


def test_share_and_surprise_count_rare_tokens_more() -> None:
    ids = np.zeros(640, np.int64)
    ids[100], ids[200], ids[300:320] = 7, 8, 9
    terms = Terms.of(np.array([7, 0, 5]), in_chunks(ids, 64), span=64)
    assert terms.n_blocks == 10 and terms.weights[1] == 0.0  # 5 does not occur
    assert terms.share(np.array([7, 0])) == 1.0
    assert terms.share(np.array([0])) < 0.1 < 0.9 < terms.share(np.array([7]))
    assert terms.surprise(np.array([0])) < 0
    assert terms.surprise(np.array([7])) == pytest.approx(math.log1p(9.5 / 1.5) - math.log(10))
    assert Terms.of(np.array([5]), in_chunks(ids, 64), span=64).share(ids) == 0.0
