"""TokenLog and RecentTokens: access by position, bounded memory, constant time per token."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.recent_tokens import RecentTokens, TokenLog


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def filled(n: int) -> TokenLog:
    """A log whose token at each position is the position."""
    log = TokenLog()
    log.put(0, np.arange(n, dtype=np.int32))
    return log


# -- the log --------------------------------------------------------------------------------------


def test_take_selects_by_position() -> None:
    log = TokenLog()
    log.put(0, ids(10, 11, 12))
    log.put(3, ids(13))
    log.put(4, ids(14, 15))
    assert log.take(0, 6).tolist() == [10, 11, 12, 13, 14, 15]
    assert log.take(2, 4).tolist() == [12, 13] and log.take(2, 2).tolist() == []
    assert log.take(1, 5).dtype == np.int32


def test_take_returns_only_recorded_tokens() -> None:
    log = TokenLog(100, ids(1, 2, 3))
    assert log.take(0, 1000).tolist() == [1, 2, 3] and log.take(101, 102).tolist() == [2]
    for start, stop in ((0, 100), (103, 200), (500, 600), (102, 101)):
        assert log.take(start, stop).tolist() == []
    assert TokenLog().take(0, 10).tolist() == []


def test_ids_of_other_types_become_int32() -> None:
    log = TokenLog(0, np.array([1, 2], np.int64))
    log.put(2, np.array([3], np.uint16))
    assert log.take(0, 3).tolist() == [1, 2, 3] and log.take(0, 3).dtype == np.int32


def test_put_replaces_everything_after_its_position() -> None:
    """As after a rewind."""
    log = filled(10)
    log.put(4, ids(44))
    assert log.take(0, 10).tolist() == [0, 1, 2, 3, 44]
    log.put(5, ids(55))
    assert log.take(0, 10).tolist() == [0, 1, 2, 3, 44, 55]
    log.put(2, ids())
    assert log.take(0, 10).tolist() == [0, 1]


@pytest.mark.parametrize("position", [11, 500])
def test_put_after_a_gap_restarts_the_log(position: int) -> None:
    log = filled(10)
    log.put(position, ids(7, 8))
    assert log.take(0, 1000).tolist() == [7, 8]
    assert log.take(position, position + 1).tolist() == [7]
    log.put(position + 2, ids(9))
    assert log.take(0, 1000).tolist() == [7, 8, 9]


def test_put_before_the_start_restarts_the_log() -> None:
    log = TokenLog(100, ids(1, 2, 3))
    log.put(50, ids(5))
    assert log.take(0, 1000).tolist() == [5] and log.take(50, 51).tolist() == [5]
    log.put(51, ids(6))
    assert log.take(50, 52).tolist() == [5, 6]


def test_put_at_either_end_extends_the_log() -> None:
    log = TokenLog(100, ids(1, 2, 3))
    log.put(103, ids(4))
    assert log.take(100, 104).tolist() == [1, 2, 3, 4]
    log.put(100, ids(9))
    assert log.take(0, 1000).tolist() == [9] and log.take(100, 101).tolist() == [9]


def test_drop_removes_tokens_before_a_position() -> None:
    log = filled(10)
    log.drop(4)
    assert log.take(0, 10).tolist() == [4, 5, 6, 7, 8, 9]
    log.drop(2)  # dropped before
    assert log.take(0, 10).tolist() == [4, 5, 6, 7, 8, 9]
    log.put(10, ids(10))
    assert log.take(8, 11).tolist() == [8, 9, 10]
    log.drop(500)  # past the end
    assert log.take(0, 1000).tolist() == []
    log.put(11, ids(11))
    assert log.take(0, 1000).tolist() == [11] and log.take(11, 12).tolist() == [11]


def test_drop_keeps_tokens_from_keep_from_on() -> None:
    log = filled(10)
    log.keep_from = 3
    log.drop(8)
    assert log.take(0, 10).tolist() == list(range(3, 10))
    log.keep_from = 20
    log.drop(5)  # setting `keep_from` drops nothing by itself
    assert log.take(0, 10).tolist() == list(range(5, 10))
    log.keep_from = None
    log.drop(8)
    assert log.take(0, 10).tolist() == [8, 9]


def test_a_copy_is_independent() -> None:
    log = filled(10)
    log.keep_from = 2
    other = log.copy()
    assert other.keep_from == 2 and other.take(0, 10).tolist() == list(range(10))
    other.put(3, ids(33))
    log.put(10, ids(10))
    other.keep_from = None
    other.drop(2)
    assert log.take(0, 11).tolist() == list(range(11)) and log.keep_from == 2
    assert other.take(0, 11).tolist() == [2, 33]


def test_the_log_shares_no_arrays_with_the_caller() -> None:
    mine = ids(1, 2, 3)
    log = TokenLog(0, mine)
    log.put(3, mine)
    mine[:] = 9
    taken = log.take(0, 6)
    assert taken.tolist() == [1, 2, 3, 1, 2, 3]
    taken[:] = 8
    assert log.take(0, 6).tolist() == [1, 2, 3, 1, 2, 3]


CALLS = st.one_of(
    st.tuples(st.just("on"), st.integers(0, 90)),
    st.tuples(st.just("back"), st.integers(0, 30)),
    st.tuples(st.just("ahead"), st.integers(1, 9)),
    st.tuples(st.just("drop"), st.integers(0, 40)),
    st.tuples(st.just("keep"), st.integers(0, 40)),
    st.tuples(st.just("copy"), st.just(0)),
)


@given(st.lists(CALLS, max_size=40))
def test_the_log_matches_a_dictionary(calls: list[tuple[str, int]]) -> None:
    log, wanted, end, next_id = TokenLog(), dict[int, int](), 0, 0
    keep_from: int | None = None
    for what, n in calls:
        if what in ("on", "back", "ahead"):
            new = np.arange(next_id, next_id + (n if what == "on" else 3), dtype=np.int32)
            next_id += len(new)
            position = {"on": end, "back": max(0, end - n), "ahead": end + n}[what]
            log.put(position, new)
            wanted = {at: token for at, token in wanted.items() if at < position}
            if wanted and position > max(wanted) + 1:
                wanted = {}  # a gap
            wanted |= {position + i: int(token) for i, token in enumerate(new)}
            end = position + len(new)
        elif what == "drop":
            before = end - n
            log.drop(before)
            first = before if keep_from is None else min(before, keep_from)
            wanted = {at: token for at, token in wanted.items() if at >= first}
        elif what == "keep":
            log.keep_from = keep_from = end - n
        else:
            log = log.copy()
        assert log.take(0, end + 100).tolist() == [wanted[at] for at in sorted(wanted)]
        some = log.take(end - 5, end - 2)
        assert some.tolist() == [wanted[at] for at in range(end - 5, end - 2) if at in wanted]


# -- cost -----------------------------------------------------------------------------------------


def allocated(work: Callable[[], object]) -> int:
    """Peak bytes that a call allocates."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("held", [1_000, 100_000])
def test_put_takes_constant_amortized_time(held: int) -> None:
    """The buffer is copied only when its size doubles."""
    log, grew = filled(held), []
    for position in range(held, 2 * held + 200, max(1, held // 500)):
        for token in range(max(1, held // 500)):
            new = ids(token)
            if token:
                log.put(position + token, new)
            elif allocated(lambda at=position, new=new: log.put(at, new)) > 2_000:
                grew.append(position)
    assert len(grew) <= 2 and len(log.take(0, 4 * held)) > 2 * held


def test_memory_follows_the_number_of_tokens() -> None:
    """Dropped tokens free their memory."""
    log = TokenLog()

    def read() -> None:
        for position in range(0, 400_000, 100):
            log.put(position, np.zeros(100, np.int32))
            if position % 5_000 == 0:
                log.drop(position - 2_000)

    assert allocated(read) < 200_000  # bytes; all ids take 1.6 million
    log.drop(399_990)
    assert len(log.take(0, 400_000)) == 10
    assert allocated(log.copy) < 2_000


# -- recent tokens ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at(tiny: Checkpoint) -> Callable[[int], TextStream]:
    """Makes streams at a position."""
    beginning = TextStream.begin(tiny)
    return lambda position: replace(beginning, position=position)


def test_recent_tokens_begin_with_one_stream(at: Callable[[int], TextStream]) -> None:
    stream = at(0)
    recent = RecentTokens.begin(stream, length=10)
    assert recent.starts == (stream,) and recent.start == 0
    assert RecentTokens.begin(at(70), length=10).start == 70


def test_at_most_two_streams_are_kept(at: Callable[[int], TextStream]) -> None:
    recent, starts = RecentTokens.begin(at(0), length=10), []
    for position in range(0, 60, 3):
        moved = recent.advanced(at(position))
        if moved is not recent:
            starts.append((position, [each.position for each in moved.starts]))
        recent = moved
        assert len(recent.starts) <= 2
        # At least `length` tokens can be read again, and not many more.
        assert recent.start == 0 or 10 <= position - recent.start < 2 * (10 + 3)
    assert starts == [(12, [0, 12]), (24, [12, 24]), (36, [24, 36]), (48, [36, 48])]


def test_advanced_does_not_modify(at: Callable[[int], TextStream]) -> None:
    first = RecentTokens.begin(at(0), length=5)
    second = first.advanced(at(5))
    third = second.advanced(at(10))
    assert [each.position for each in first.starts] == [0]
    assert [each.position for each in second.starts] == [0, 5]
    assert [each.position for each in third.starts] == [5, 10]
    assert second.advanced(at(9)) is second


def test_kept_streams_hold_no_output_of_the_model(at: Callable[[int], TextStream]) -> None:
    stream = replace(at(8), hidden=torch.zeros(1, 3))
    recent = RecentTokens.begin(at(0), length=5).advanced(stream)
    assert recent.starts[1].hidden is None and recent.starts[1].state is stream.state


def test_covers_needs_length_tokens_or_the_beginning(
    at: Callable[[int], TextStream],
) -> None:
    young = RecentTokens.begin(at(0), length=10)
    assert young.covers(0) and young.covers(3) and young.covers(100)
    late = RecentTokens.begin(at(40), length=10)
    assert not late.covers(40) and not late.covers(49) and late.covers(50)
