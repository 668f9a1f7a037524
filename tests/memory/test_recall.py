"""The search for places of attention against a plain one, in any blocks, and its edges."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from streamlm.memory.recall import GROUP, WIDTH, KeySearch, Place, ReadKeys

HEADS = [0, 1, 1]  # the key head of each query head


def in_blocks(keys: Tensor, bounds: list[int], gaps: set[int]) -> ReadKeys:
    """Reads keys in blocks that begin at `bounds`, without the blocks at the indices `gaps`."""

    def read(start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for at, (begin, end) in enumerate(pairwise([*bounds, len(keys)])):
            low, high = max(begin, start), min(end, stop)
            if low < high and at not in gaps:
                yield low, keys[low:high]

    return read


def plain(queries: Tensor, keys: Tensor, known: Tensor) -> Tensor:
    """The score of every place; places whose key is not known have -1."""
    total = torch.zeros(len(keys), dtype=torch.float64)
    reach = WIDTH // 2
    for query, head in zip(queries.double(), HEADS, strict=True):
        scores = (query @ keys[:, head].double().T).masked_fill(~known, -torch.inf)
        for row in scores.softmax(dim=1):
            for place in range(len(keys)):
                mass = row[max(0, place - reach) : place + reach + 1].sum()
                total[place] += mass.sqrt()
    total /= queries.shape[0] * queries.shape[1]
    return total.masked_fill(~known, -1.0)


def apart(scores: Tensor, k: int) -> list[Place]:
    scores, found = scores.clone(), []
    for _ in range(k):
        best = int(scores.argmax())
        if scores[best] < 0:
            break
        found.append(Place(best, float(scores[best])))
        scores[max(0, best - WIDTH + 1) : best + WIDTH] = -1
    return found


@pytest.mark.parametrize("n", [1, 30, GROUP, 3 * GROUP + 5, 700])
@pytest.mark.parametrize("pieces", [1, 4])
def test_the_best_places_are_those_of_a_plain_search(n: int, pieces: int) -> None:
    random = np.random.default_rng(n + pieces)
    for trial in range(4):
        keys = torch.from_numpy(random.standard_normal((n, 2, 8))).float()
        queries = torch.from_numpy(random.standard_normal((3, 5, 8))).float() * 2
        cuts = random.integers(0, n, pieces - 1).tolist()
        bounds = sorted({0, *map(int, cuts)})
        search = KeySearch(queries, HEADS, in_blocks(keys, bounds, set()), start=0, stop=n)
        scores = plain(queries, keys, torch.ones(n, dtype=torch.bool))
        found, wanted = search.best(4), apart(scores, 4)
        # Of places that are equally good, rounding chooses.
        here = [float(scores[each.position]) for each in found]
        assert here == pytest.approx([each.score for each in wanted], abs=1e-5), trial
        assert [each.score for each in found] == pytest.approx([e.score for e in wanted], abs=1e-5)
        low, high = sorted(random.integers(0, n + 1, 2).tolist())
        place = search.within(low, high)
        if low == high:
            assert place is None
            continue
        assert place is not None and low <= place.position < high
        best = pytest.approx(float(scores[low:high].max()), abs=1e-5)
        assert place.score == best and float(scores[place.position]) == best


def test_keys_that_are_not_there_have_no_mass() -> None:
    random = torch.Generator().manual_seed(1)
    keys = torch.randn(400, 2, 8, generator=random)
    queries = torch.randn(3, 4, 8, generator=random)
    known = torch.ones(400, dtype=torch.bool)
    known[128:256] = False
    read = in_blocks(keys, [0, 128, 256], {1})
    search = KeySearch(queries, HEADS, read, start=0, stop=400)
    scores = plain(queries, keys, known)
    assert search.best(1)[0].score == pytest.approx(float(scores.max()), abs=1e-5)
    assert all(not 128 <= each.position < 256 for each in search.best(9))
    assert search.within(140, 200) is None


def test_a_search_keeps_to_its_range() -> None:
    keys = torch.zeros(300, 2, 8)
    keys[40] = keys[250] = 30.0  # outside
    keys[130] = 3.0
    queries = torch.ones(3, 2, 8)
    read = in_blocks(keys, [0], set())
    best = KeySearch(queries, HEADS, read, start=100, stop=200).best(1)[0]
    assert abs(best.position - 130) <= WIDTH // 2 and best.score == pytest.approx(1.0, abs=1e-3)


def test_without_keys_nothing_is_found() -> None:
    nothing = KeySearch(torch.ones(3, 2, 8), HEADS, lambda a, b: iter(()), start=0, stop=100)
    assert nothing.best(3) == [] and nothing.within(0, 100) is None


def test_a_place_that_every_query_attends_to_is_better_than_that_of_one() -> None:
    """Why masses have a root: one word of a question stands in many places."""
    keys = torch.zeros(400, 2, 3)
    queries = torch.eye(3)[None, :2].expand(3, -1, -1) * 10
    keys[100, :, 0] = 1.0  # the first word, here alone
    keys[300, :, 0] = keys[300, :, 1] = 0.95
    keys[150, :, 1] = 0.9
    search = KeySearch(queries, HEADS, in_blocks(keys, [0], set()), start=0, stop=400)
    assert abs(search.best(1)[0].position - 300) <= WIDTH // 2
