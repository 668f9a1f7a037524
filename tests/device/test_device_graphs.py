"""Tokens on a pretended CUDA device, captured and replayed as CUDA graphs are."""

import copy

import pytest
import torch

from benchmarks.tools import parity
from streamlm.engine.batch import Batch
from streamlm.models.build import build_model
from streamlm.models.cache import Cache
from streamlm.models.segmented import SegmentedModel
from streamlm.runtime.stream import advance
from tests.device.cases import VARIANTS, config_of
from tests.support.graphs import pretended_graphs
from tests.support.pretended_cuda import pretended_cuda

READ_IN_ROWS = ["relative", "most-used", "select", "adaptive", "llama", "llama-most-used"]
everywhere = pytest.mark.parametrize("variant", READ_IN_ROWS)
each_kind = pytest.mark.parametrize("variant", ["relative", "most-used", "llama"])


def model_of(variant: str) -> SegmentedModel:
    torch.manual_seed(0)
    model = build_model(config_of(variant)).eval().freeze()
    assert isinstance(model, SegmentedModel)
    return model


def test_all_that_read_any_phase_are_here() -> None:
    found = [name for name in VARIANTS if build_model(config_of(name)).reads_any_phase]
    assert found == READ_IN_ROWS


@everywhere
def test_a_stream_is_the_same(variant: str) -> None:
    """Over the ends of segments, with one capture: keys and values stay where they are."""
    model, rows = model_of(variant), 2
    t, begun = model.config.segment_len, 53
    tokens = parity.some_tokens(model.config, begun + 3 * t, rows=rows)
    cache = Cache()
    _, state = advance(model, tokens[:, :begun], model.init_state(rows), cache)
    with pretended_cuda(), pretended_graphs(warm=2) as log:
        other, mine = copy.deepcopy(model).to("cuda"), Cache()
        ids = tokens.to("cuda")
        _, there = advance(other, ids[:, :begun], other.init_state(rows), mine)
        for i in range(begun, tokens.shape[1]):
            wanted, state = advance(model, tokens[:, i : i + 1], state, cache)
            found, there = advance(other, ids[:, i : i + 1], there, mine)
            assert parity.distance(found, wanted) < 1e-4
            assert mine.follows(there, other.frozen)
        assert log.count("capture") == 1
        assert log.count("replay") == 3 * t - 2
        for name in ("past", "usage", "filled", "position"):
            assert parity.distance(getattr(there, name), getattr(state, name)) < 1e-4, name
        assert there.length == state.length


@each_kind
def test_a_replay_has_the_bits_of_a_call(variant: str) -> None:
    """Also after an earlier state is gone on with, whose slots later ones do not change."""
    digests = []
    for warm in (0, 1000):
        with pretended_cuda(), pretended_graphs(warm=warm):
            model, cache = model_of(variant).to("cuda"), Cache()
            ids = parity.some_tokens(model.config, 100, rows=1).to("cuda")
            _, before = advance(model, ids[:, :37], model.init_state(1), cache)
            kept, state = before.digest(), before
            for i in range(37, 42):
                _, state = advance(model, ids[:, i : i + 1], state, cache)
            for i in range(50, 70):
                _, before = advance(model, ids[:, i : i + 1], before, cache)
            digests.append((kept, state.digest(), before.digest()))
    assert digests[0] == digests[1]


@each_kind
def test_rows_come_and_go_in_one_capture(variant: str) -> None:
    """A batch writes what its rows write alone, whoever else is there."""
    with pretended_cuda(), pretended_graphs(warm=1) as log:
        model = model_of(variant).to("cuda")
        ids = parity.some_tokens(model.config, 200, rows=2).to("cuda")
        alone, ends = Cache(), []
        for row, n in enumerate((21, 58)):
            _, state = advance(model, ids[row : row + 1, :n], model.init_state(1))
            for i in range(n, n + 40):
                _, state = advance(model, ids[row : row + 1, i : i + 1], state, alone)
            ends.append(state)
        log.clear()
        batch, host = Batch(model, 3), ids.to("cpu").tolist()
        at: dict[int, tuple[int, int]] = {}  # row of the batch → row of ids, next token

        def enter(row: int, n: int) -> None:
            cache = Cache()
            _, state = advance(model, ids[row : row + 1, :n], model.init_state(1), cache)
            at[batch.put(state, cache)] = row, n

        def step() -> None:
            tokens = [0] * 3
            for place, (row, n) in at.items():
                tokens[place], at[place] = host[row][n], (row, n + 1)
            batch.step(tokens)

        enter(0, 21)
        for _ in range(7):
            step()
        enter(1, 58)
        for _ in range(33):
            step()
        (first, second), found = at, []
        found.append(batch.take(first))
        batch.free(first)
        del at[first]
        for _ in range(7):
            step()
        found.append(batch.take(second))
        assert log.count("capture") == 1
        for mine, wanted in zip(found, ends, strict=True):
            assert parity.distance(mine.past, wanted.past) < 1e-4
            n = wanted.phase
            assert mine.length == wanted.length
            assert parity.distance(mine.segment[:, :, :n], wanted.segment[:, :, :n]) < 1e-4


def test_released_keys_are_not_kept() -> None:
    with pretended_cuda(), pretended_graphs(warm=1):
        model, cache = model_of("relative").to("cuda"), Cache()
        ids = parity.some_tokens(model.config, 30, rows=1).to("cuda")
        state = model.init_state(1)
        for i in range(5):
            _, state = advance(model, ids[:, i : i + 1], state, cache)
        assert cache.stays
        cache.release()
        assert not cache.stays and cache.step is None
        wanted, _ = advance(model, ids[:, 5:6], state)
        found, _ = advance(model, ids[:, 5:6], state, cache)
        assert parity.distance(found, wanted) < 1e-5


def test_a_model_that_is_frozen_again_is_captured_anew() -> None:
    with pretended_cuda(), pretended_graphs(warm=1) as log:
        model, cache = model_of("relative").to("cuda"), Cache()
        ids = parity.some_tokens(model.config, 30, rows=1).to("cuda")
        state = model.init_state(1)
        for i in range(4):
            _, state = advance(model, ids[:, i : i + 1], state, cache)
        model.freeze()
        for i in range(4, 8):
            _, state = advance(model, ids[:, i : i + 1], state, cache)
        assert log.count("capture") == 2
