"""The memory report: the tokens of each slot, and its figures against their formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import COMPRESSIONS
from streamlm.memory.compression import MostUsed, Select
from streamlm.models.cache import Cache
from streamlm.models.transformer_xl import TransformerXL
from streamlm.runtime.memory_report import MemoryReport, SlotWatch, observe, window
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from tests.reference.attention import softmax
from tests.support.invariants import random_tokens, read, tiny_model

N = 45  # tokens; the tiny model's memory spans about 20


def report_of(model: TransformerXL, *, n: int = N, start: int = 0) -> MemoryReport:
    tokens = random_tokens(model, n)
    with torch.no_grad():
        _, state = read(model, tokens[:, :start], model.init_state(1)) if start else (
            None, model.init_state(1)
        )  # fmt: skip
    return observe(model, tokens[:, start:], state)


def inputs_of(model: TransformerXL, n: int) -> tuple[list[Tensor], Tensor]:
    """Layer inputs [L, W] of every position, and the slots of the state after them."""
    tokens, state, found = random_tokens(model, n), model.init_state(1), []
    with torch.no_grad():
        for at in range(0, n, model.config.segment_len):
            piece = tokens[:, at : at + model.config.segment_len]
            _, state = model(piece, state)
            found += [state.segment[:, 0, i] for i in range(piece.shape[1])]
            if state.phase == model.config.segment_len:
                state, _ = model.commit(state)
    past = state.past[:, 0, model.config.past_len - int(state.filled) :]
    return found, torch.cat([past, state.segment[:, 0, : state.phase]], dim=1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 9, 13, N])
def test_slots_represent_the_reported_tokens(compression: str, n: int) -> None:
    model = tiny_model(compression=compression)
    config = model.config
    found = report_of(model, n=n)
    inputs, slots = inputs_of(model, n)
    assert len(found) == slots.shape[1] and found.position == n
    whole = isinstance(model.compressors[0], MostUsed | Select)
    for index in range(config.n_layers):
        for i in range(len(found)):
            # The first input is bos: input p is token p - 1 of the stream.
            start, stop = found.start[index, i] + 1, found.stop[index, i] + 1
            start = 0 if stop == 1 else start
            if found.compressions[i] and not whole:
                assert start < stop <= start + config.compression_rate
                assert found.error[index, i] > 1e-3
            else:
                assert torch.equal(slots[index, i], inputs[stop - 1][index])
                assert found.error[index, i] == 0
        assert (np.diff(found.stop[index]) > 0).all()  # in time order
    n_memory = min(n // config.segment_len * config.segment_len, config.memory_len)
    recent = n_memory + n % config.segment_len
    assert found.compressions.tolist() == [1] * (len(found) - recent) + [0] * recent
    assert found.stop[0, -recent:].tolist() == list(range(n - recent, n))


@pytest.mark.parametrize("compression", ["conv", "select"])
def test_attention_is_the_mean_over_queries_that_could_attend(compression: str) -> None:
    """Read token by token, with slots identified by their tokens instead of their columns."""
    model = tiny_model(compression=compression)
    config, tokens, state = model.config, random_tokens(model, N), model.init_state(1)
    sums: dict[tuple[int, int, int], list[np.ndarray]] = {}
    with torch.no_grad():
        for at in range(N):
            weights: list[Tensor] = []
            _, state = model.hidden(
                tokens[:, at : at + 1], state, observe=lambda _, w, out=weights: out.append(w)
            )
            for index, of_layer in enumerate(weights):
                real = of_layer[0, :, 0, of_layer.shape[3] - 1 - filled_before(at) :]
                names = names_before(model, at, index)
                assert len(names) == real.shape[1]
                for name, weight in zip(names, real.T, strict=True):
                    sums.setdefault((index, *name), []).append(weight.numpy())
            if state.phase == config.segment_len:
                state, _ = model.commit(state)
    found = report_of(model)
    for index in range(config.n_layers):
        for i in range(len(found)):
            name = (index, int(found.compressions[i]), int(found.stop[index, i]))
            wanted = np.mean(sums[name], axis=0) if name in sums else np.zeros(config.n_heads)
            np.testing.assert_allclose(found.attention[index, :, i], wanted, atol=1e-12)


def names_before(model: TransformerXL, at: int, index: int) -> list[tuple[int, int]]:
    """(compressions, stop) of the slots that the query at `at` attends to, itself the last."""
    before = report_of(model, n=at) if at else None
    names = [] if before is None else [
        (int(before.compressions[i]), int(before.stop[index, i])) for i in range(len(before))
    ]  # fmt: skip
    return [*names, (0, at)]


def filled_before(at: int) -> int:
    """Slots before it that the last query of a segment attends to, in the tiny model."""
    commits = at // 4
    memory = min(4 * commits, 6)
    evicted = sum(max(0, min(4 * c, 6) + 4 - 6) for c in range(commits))
    return at % 4 + memory + min(evicted // 2, 5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_error_is_the_relative_error_of_attention(norm: str) -> None:
    model = tiny_model(compression="conv", norm=norm)
    config, t = model.config, model.config.segment_len
    tokens, state = random_tokens(model, 8 * t), model.init_state(1)
    eviction = None
    with torch.no_grad():
        for at in range(0, 8 * t, t):
            _, state = model(tokens[:, at : at + t], state)
            state, eviction = model.commit(state)
    assert eviction is not None
    found = report_of(model, n=8 * t)
    newest = slice(config.compressed_len - 2, config.compressed_len)
    for index, layer in enumerate(model.layers):
        seen = layer.attention_norm if norm == "pre" else (lambda slot: slot)
        attention, e = layer.attention, config.head_dim
        lost, whole = torch.zeros(2), torch.zeros(2)
        for x in eviction.queries[index, 0]:
            for h in range(config.n_heads):
                rows = slice(h * e, (h + 1) * e)
                q = attention.query.weight[rows] @ seen(x) / math.sqrt(e)
                keys, values = attention.key_value.weight.chunk(2)
                old, new = eviction.evicted[index, 0], eviction.compressed[index, 0]
                p = softmax([q @ (keys[rows] @ seen(slot)) for slot in old])
                r = softmax([q @ (keys[rows] @ seen(slot)) for slot in new])
                for g in range(2):
                    wanted = sum(p[i] * (values[rows] @ seen(old[i])) for i in (2 * g, 2 * g + 1))
                    got = r[g] * (values[rows] @ seen(new[g]))
                    lost[g] += (got - wanted).square().sum().detach()
                    whole[g] += wanted.square().sum().detach()
        wanted = (lost / whole).sqrt().numpy()
        np.testing.assert_allclose(found.error[index, newest], wanted, rtol=1e-6)


def test_the_report_does_not_depend_on_the_start() -> None:
    model = tiny_model(compression="select")
    whole, late = report_of(model), report_of(model, start=N - window(model.config))
    for name in ("start", "stop", "compressions", "error"):
        assert np.array_equal(getattr(whole, name), getattr(late, name)), name
    np.testing.assert_allclose(whole.attention, late.attention, atol=1e-12)
    with pytest.raises(ValueError, match=f"allowed: at least {window(model.config)}"):
        report_of(model, start=N - window(model.config) + 1)


def test_kept_is_the_retained_share() -> None:
    model = tiny_model(compression="conv")
    found = report_of(model)
    assert found.kept(N - 6, N) == 1.0 and found.kept(0, 5) == 0.0
    old = found.compressions == 1
    first, last = int(found.start[0, old].min()), int(found.stop[0, old].max())
    whole = np.clip(1 - found.error[:, old], 0, 1)
    assert found.kept(first, last) == pytest.approx(whole.mean())
    for start, stop in ((-1, 2), (3, 3), (0, N + 1)):
        with pytest.raises(ValueError, match=f"tokens {start} to {stop}; allowed: a part of 0 to"):
            found.kept(start, stop)


# -- sessions ---------------------------------------------------------------------------------


def same(a: MemoryReport, b: MemoryReport) -> bool:
    fields = ("position", "start", "stop", "compressions", "slot_bytes")
    close = all(
        np.allclose(getattr(a, name), getattr(b, name), atol=1e-4)
        for name in ("attention", "error")
    )
    return close and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


def test_all_kinds_of_sessions_report(tmp_path: Path, tiny: Checkpoint) -> None:
    text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 6
    plain = Session(tiny)
    with pytest.raises(ValueError, match="nothing was read yet"):
        plain.memory_report()
    plain.feed([text])
    wanted = plain.memory_report()
    assert len(wanted) == int(plain.state.filled) + plain.state.phase
    end = wanted.ids[-1]
    with streamlm.open(tmp_path / "s.zarr", tiny, save_every=40) as session:
        session.feed([text])
        assert same(session.memory_report(), wanted)
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        digest = session.state.digest()
        assert same(session.memory_report(), wanted)
        assert session.state.digest() == digest and session.position == plain.position
        fork = session.fork()
        assert same(fork.memory_report(), wanted)
        list(fork.generate(max_tokens=9, seed=1))
        list(plain.generate(max_tokens=9, seed=1))
        assert same(fork.memory_report(), plain.memory_report())
        list(session.generate(max_tokens=9, seed=1))  # not saved
        assert same(session.memory_report(), plain.memory_report())
    assert wanted.first + len(wanted.ids) == wanted.position
    assert end == wanted.ids[-1]


def test_recent_tokens_are_bounded_and_long_enough(tiny: Checkpoint) -> None:
    session, length = Session(tiny), window(tiny.model.config)
    for _ in range(40):
        session.feed(["And so they went on, and on. "])
        list(session.generate(max_tokens=3, temperature=0))
        start, held = session._live.recent.start, session._live.log.take(0, session.position)
        ids = session._live.log.take(start, session.position)
        assert start + len(ids) == session.position
        assert start == 0 or length <= len(ids) <= 3 * length
        assert len(session._live.recent.starts) <= 2 and len(held) == len(ids)
    assert session.position > 4 * length and start
    assert len(session.memory_report())


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("before", [0, 7])
def test_slots_are_watched_while_reading(compression: str, before: int) -> None:
    model = tiny_model(compression=compression)
    tokens, cache = random_tokens(model, 60), Cache()
    state = model.init_state(1)
    if before:
        _, state = advance(model, tokens[:, :before], state)
    watch = SlotWatch(model, state)
    cache.on_commit = watch.commit
    known_from = before + window(model.config)  # by then no slot of the beginning is left
    for n in range(before + 1, 60):
        _, state = advance(model, tokens[:, n - 1 : n], state, cache)
        if n not in (1, 4, 9, 13, 31, 50, 59):
            continue
        found, wanted = watch.report(n), report_of(model, n=n)
        assert found is not None and found.attention.shape[1] == 0
        assert found.position == n and found.slot_bytes == wanted.slot_bytes
        assert np.array_equal(found.compressions, wanted.compressions)
        young = wanted.compressions == 0
        known = np.ones_like(young) if not before or n >= known_from else young
        for name in ("start", "stop", "error"):
            ours, theirs = getattr(found, name)[:, known], getattr(wanted, name)[:, known]
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert watch.report(60 + model.config.segment_len) is None  # not read yet
