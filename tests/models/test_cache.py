"""Cache: reused for its own state, recomputed for any other, and never changes a state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.layers.relative_step import _StepLayer
from streamlm.runtime.stream import close
from streamlm.state import State
from tests.support.invariants import largest_difference, random_tokens, read, tiny_model
from tests.support.projections import count_projections

HEADS: dict[str, dict[str, Any]] = {
    "relative": {},
    "short memory": {"memory_len": 2},
    "most-used": {"compression": "most-used"},
    "full": {"head": "full", "memory_len": 0, "compressed_len": 0},
    "recurrent": {"head": "recurrent", "memory_len": 0, "compressed_len": 0},
    "linformer": {"head": "linformer", "memory_len": 8, "compressed_len": 0, "projected_len": 2},
    "informer": {"head": "informer", "memory_len": 8, "compressed_len": 0, "factor": 1},
    "sinks": {"head": "sinks", "memory_len": 5, "compressed_len": 0, "pinned_len": 2},
    "sketch": {"head": "sketch", "memory_len": 8, "compressed_len": 5, "compression_rate": 3},
}
everywhere = pytest.mark.parametrize("head", HEADS)
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def projected(model: Model) -> list[int]:
    """Counts the slots of each call of the first layer's key and value projection."""
    return count_projections(model)[0]


def stream(model: Model, n: int, *, rows: int = 1, seed: int = 2) -> tuple[State, Cache]:
    """A stream that has read n tokens, and its cache."""
    cache, tokens = Cache(), random_tokens(model, n, rows=rows, seed=seed)
    return read(model, tokens, model.init_state(rows), cache=cache)[1], cache


# -- validity -------------------------------------------------------------------------------------


@everywhere
def test_a_cache_follows_its_state(head: str) -> None:
    model = tiny_model(**HEADS[head])
    state, cache = stream(model, 21)
    assert cache.follows(state, model.frozen)
    calls = projected(model)
    for seed in range(3):
        token = random_tokens(model, 1, seed=seed)
        wanted, _ = model(token, state)
        calls.clear()
        logits, after = model(token, state, cache)
        assert calls == [1], "one token, no past slots"
        assert largest_difference(logits, wanted) <= TOLERANCE
        assert cache.follows(after, model.frozen)
        state = after


@everywhere
def test_a_cache_is_truncated_to_an_earlier_state_of_the_segment(head: str) -> None:
    model = tiny_model(**HEADS[head])
    state, cache = stream(model, 21)
    twin = cache.copy()
    tokens = random_tokens(model, 3)
    _, one = model(tokens[:, :1], state, cache)
    _, two = model(tokens[:, 1:2], one, cache)
    digests = [each.digest() for each in (state, one, two)]
    _, again = model(tokens[:, :1], state, twin)  # as if no later token had been read
    wanted, after = model(tokens[:, 2:], again, twin)
    calls = projected(model)
    logits, found = model(tokens[:, 2:], one, cache)
    assert calls == [1]
    assert torch.equal(logits, wanted) and found.digest() == after.digest()
    assert [each.digest() for each in (state, one, two)] == digests


@everywhere
def test_states_stay_valid_when_their_cache_is_reused(head: str) -> None:
    """Reading from any earlier state with one shared cache equals reading without a cache."""
    model, random = tiny_model(**HEADS[head]), np.random.default_rng(4)
    t = model.config.segment_len
    cache, states = Cache(), [model.init_state(1)]
    digests = [states[0].digest()]
    for step in range(60):
        # Mostly one of the newest states.
        start = states[-1 - min(int(random.geometric(0.4)) - 1, len(states) - 1)]
        if start.phase == t:
            after, wanted = model.commit(start, cache)[0], model.commit(start)[0]
        else:
            n = int(random.integers(1, t - start.phase + 1))
            tokens = random_tokens(model, n, seed=step)
            right, wanted = model(tokens, start)
            logits, after = model(tokens, start, cache)
            assert largest_difference(logits, right) <= TOLERANCE, f"step {step}"
        assert after.length == wanted.length
        real = slice(0, after.phase)
        difference = largest_difference(after.segment[:, :, real], wanted.segment[:, :, real])
        assert max(difference, largest_difference(after.past, wanted.past)) <= TOLERANCE
        states.append(after)
        digests.append(after.digest())
        assert [each.digest() for each in states] == digests, f"step {step} changed a state"


@everywhere
def test_a_cache_of_another_state_is_recomputed(head: str) -> None:
    """For another stream of equal length, and for a loaded copy of the same state."""
    model = tiny_model(**HEADS[head])
    state, cache = stream(model, 22)
    other, _ = stream(model, 22, seed=9)
    equal, _ = stream(model, 22)
    token = random_tokens(model, 1)
    for foreign in (other, equal, model.init_state(1)):
        assert not cache.follows(foreign, model.frozen)
        wanted, end = model(token, foreign, Cache())
        logits, after = model(token, foreign, cache)
        assert torch.equal(logits, wanted) and after.digest() == end.digest()
        assert cache.follows(after, model.frozen) and not cache.follows(state, model.frozen)


def test_a_cache_is_invalid_for_a_longer_state() -> None:
    """The cache was copied before the last tokens were read."""
    model = tiny_model()
    state, cache = stream(model, 21)
    early = cache.copy()
    _, later = model(random_tokens(model, 2), state, cache)
    assert early.follows(state, model.frozen) and not early.follows(later, model.frozen)
    wanted, _ = model(random_tokens(model, 1), later, Cache())
    assert torch.equal(model(random_tokens(model, 1), later, early)[0], wanted)


def test_a_cache_is_invalid_for_another_batch_size() -> None:
    model = tiny_model()
    state, cache = stream(model, 21, rows=3)
    some = state.rows([2, 0])
    assert not cache.follows(some, model.frozen)
    logits, _ = model(random_tokens(model, 1, rows=2), some, cache)
    wanted, _ = model(random_tokens(model, 1, rows=2), some)
    assert torch.equal(logits, wanted)


def test_a_cache_is_invalid_after_a_row_is_reset() -> None:
    model = tiny_model()
    state, cache = stream(model, 20, rows=2)
    reset = state.reset_rows(torch.tensor([True, False]))
    logits, _ = model(random_tokens(model, 2, rows=2), reset, cache)
    wanted, _ = model(random_tokens(model, 2), model.init_state(1))
    assert largest_difference(logits[:1], wanted) <= TOLERANCE


def test_a_commit_of_some_rows_keeps_the_cache() -> None:
    """Only new slots of the committed rows are projected."""
    model = tiny_model()
    ages = [20, 21, 23]
    state, cache = State.stack([stream(model, age)[0] for age in ages]), Cache()
    calls = projected(model)
    token = random_tokens(model, 1, rows=3)
    _, state = model(token, state, cache)
    assert calls[-1] == 1 and len(calls) > 1, "the past is projected once"
    calls.clear()
    state, eviction = model.commit(state, cache)
    assert state.length == (1, 2, 0) and eviction is None
    # The full row: its segment, written by several calls, and its new compressed slots.
    assert sorted(calls) == [2, 4]
    calls.clear()
    logits, after = model(token, state, cache)
    assert calls == [1] and cache.follows(after, model.frozen)
    assert largest_difference(logits, model(token, state)[0]) <= TOLERANCE


# -- writing --------------------------------------------------------------------------------------


def test_the_segment_is_copied_only_before_overwriting() -> None:
    model = tiny_model()
    state, cache = stream(model, 21)
    token = random_tokens(model, 1)
    _, one = model(token, state, cache)
    assert one.segment is state.segment, "consecutive states share one buffer"
    _, other = model(token, state, cache)
    assert other.segment is not one.segment
    _, on = model(token, other, cache)
    assert on.segment is other.segment


def test_released_columns_are_overwritten() -> None:
    model = tiny_model()
    state, cache = stream(model, 20)
    tokens = random_tokens(model, 3)
    _, after = model(tokens, state, cache)
    reached = model.truncate(state, tokens, after, 1, cache)
    assert cache.follows(reached, model.frozen)
    cache.release_tail()
    digest = reached.digest()
    _, on = model(random_tokens(model, 1, seed=5), reached, cache)
    assert on.segment is after.segment and reached.digest() == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.keys[0].add_(1),
        lambda cache: cache.values[1].add_(1),
        lambda cache: cache.segment.add_(1),
    ],
    ids=["keys", "values", "segment"],
)
def test_a_copy_is_independent(change: Callable[[Cache], object]) -> None:
    model = tiny_model()
    state, cache = stream(model, 22)
    assert cache.segment is not None
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values, cache.segment)]
    copied = cache.copy()
    assert (copied.length, copied.calls) == (cache.length, cache.calls)
    assert copied.follows(state, model.frozen)
    change(copied)
    after = (*cache.keys, *cache.values, cache.segment)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@everywhere
def test_a_copy_continues_like_the_original(head: str) -> None:
    model = tiny_model(**HEADS[head])
    state, cache = stream(model, 22)
    copied, rest = cache.copy(), random_tokens(model, 11)
    wanted, end = read(model, rest, state, sizes=[1, 3, 2, 5], cache=cache)
    logits, after = read(model, rest, state, sizes=[1, 3, 2, 5], cache=copied)
    assert torch.equal(logits, wanted) and after.digest() == end.digest()


def test_an_empty_cache_can_be_copied_and_cleared() -> None:
    model, cache = tiny_model(), Cache()
    cache.clear()
    assert cache.nbytes == cache.copy().nbytes == 0
    state, _ = stream(model, 9)
    assert not cache.copy().follows(state, model.frozen)


def test_a_cleared_cache_is_recomputed() -> None:
    model = tiny_model()
    state, cache = stream(model, 21)
    cache.clear()
    assert not cache.follows(state, model.frozen)
    calls, token = projected(model), random_tokens(model, 1)
    wanted, _ = model(token, state, Cache())
    anew = list(calls)
    calls.clear()
    assert torch.equal(model(token, state, cache)[0], wanted) and calls == anew


class Interrupted(BaseException):
    """Raised in place of Ctrl-C."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a call that is interrupted at its second layer."""

    def interrupt(model: Model, name: str, *args: Any) -> None:
        method, times = getattr(model, name), []

        def interrupted(*given: Any) -> Any:
            times.append(1)
            if len(times) == 2:
                raise Interrupted
            return method(*given)

        with monkeypatch.context() as patch:
            patch.setattr(model, name, interrupted)
            with pytest.raises(Interrupted):
                model.commit(*args) if name == "past_after" else model(*args)

    return interrupt


@everywhere
def test_an_interrupted_call_leaves_no_partial_cache(
    head: str, interrupt: Callable[..., None]
) -> None:
    """Interrupted when only some layers have been updated."""
    model = tiny_model(**HEADS[head])
    rest = random_tokens(model, 6)
    open_, cache = stream(model, 22)
    for name, state, args in (
        ("attend", open_, (random_tokens(model, 2),)),
        ("past_after", model(random_tokens(model, 2), open_, cache)[1], ()),
    ):
        digest = state.digest()
        interrupt(model, name, *args, state, cache)
        assert state.digest() == digest
        wanted, _ = read(model, rest, close(model, state), sizes=[1] * 6)
        logits, _ = read(model, rest, close(model, state, cache), sizes=[1] * 6, cache=cache)
        assert largest_difference(logits, wanted) <= TOLERANCE, name


def test_an_interrupted_step_leaves_no_partial_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single tokens take a way of their own, which writes keys and values in place."""
    model = tiny_model()
    state, cache = stream(model, 22)
    rest, digest = random_tokens(model, 2), state.digest()
    forward, times = _StepLayer.forward, []

    def interrupted(*given: Any) -> Any:
        times.append(1)
        if len(times) == 2:
            raise Interrupted
        return forward(*given)

    with monkeypatch.context() as patch:
        patch.setattr(_StepLayer, "forward", interrupted)
        with pytest.raises(Interrupted):
            model(random_tokens(model, 1, seed=9), state, cache)
    assert state.digest() == digest
    wanted, _ = read(model, rest, state, sizes=[1, 1])
    found, _ = read(model, rest, state, sizes=[1, 1], cache=cache)
    assert largest_difference(found, wanted) <= TOLERANCE


def test_an_interrupted_commit_of_some_rows_leaves_no_partial_cache(
    interrupt: Callable[..., None],
) -> None:
    model, cache = tiny_model(), Cache()
    state = State.stack([stream(model, 20)[0], stream(model, 22)[0]])
    _, state = model(random_tokens(model, 2, rows=2), state, cache)
    interrupt(model, "past_after", state, cache)
    token = random_tokens(model, 1, rows=2)
    wanted, _ = model(token, close(model, state))
    logits, _ = model(token, close(model, state, cache), cache)
    assert largest_difference(logits, wanted) <= TOLERANCE
