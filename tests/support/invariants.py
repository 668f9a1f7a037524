"""Invariants of every head, compression and norm, as checks of a model.

The checks use `init_state`, the call, `commit`, `settle` and the fields of `State`. New heads are
added to the matrix of `test_invariants`. Equality is bitwise unless a check takes a tolerance, the
maximum difference of logits and slots. Usage is always float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.build import MODELS, build_model
from streamlm.models.cache import Cache
from streamlm.models.heads.sketch import SketchModel
from streamlm.runtime.stream import close, pieces
from streamlm.state import State, from_numpy

USAGE_TOLERANCE = 1e-5  # sums of float32 weights in another order


def tiny_model(*, seed: int = 1, dtype: torch.dtype = torch.float64, **options: object) -> Any:
    """A small model with large random weights and biases, so that every parameter has an effect.

    By default, M is not a multiple of T, and C not of T / c.
    """
    shape: dict[str, object] = {
        **{"vocab_size": 11, "n_layers": 2, "d_model": 8, "n_heads": 2, "head_dim": 3, "d_ff": 12},
        **{"segment_len": 4, "memory_len": 6, "compressed_len": 5, "compression_rate": 2},
        **{"compression": "conv", "compression_loss": "none"},
    }
    if options.get("head") == "llama":
        shape |= {"n_kv_heads": 1, "head_dim": 4, "memory_len": 8, "slots": "weights"}
        shape |= {"compression": "select"}
    settings = MODELS[str(options.get("head", "relative"))].settings
    model = build_model(settings.from_dict({**shape, **options})).to(dtype).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(dtype)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.3 * noise)
            elif name == "embedding.weight":
                weight.copy_(noise / 2)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    if isinstance(model, SketchModel):
        model.set_token_types(torch.arange(model.config.vocab_size) % 3)
    return model.freeze()


def random_tokens(model: Model, n: int, *, rows: int = 1, seed: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (rows, n), generator=random)


def read(
    model: Model,
    tokens: Tensor,
    state: State,
    *,
    sizes: Sequence[int] | None = None,
    cache: Cache | None = None,
    cached: bool = True,
) -> tuple[Tensor, State]:
    """Read in calls of the given sizes (None: as few as possible), closing full segments.

    Args:
        cache: cache of the stream; None uses a temporary one.
        cached: False uses no cache, so that each call recomputes keys and values.

    Returns:
        Logits of all tokens [B, n, V], and the state.
    """
    start, outputs = 0, []
    if cache is None and cached:
        cache = Cache()
    for stop in accumulate(sizes or [tokens.shape[1]]):
        while start < stop:
            end = min(stop, start + model.config.segment_len - max(state.length))
            logits, state = model(tokens[:, start:end], state, cache)
            outputs.append(logits)
            state = close(model, state, cache)
            start = end
    assert start == tokens.shape[1], f"sizes {sizes} do not read {tokens.shape[1]} tokens"
    return torch.cat(outputs, dim=1), state


def random_sizes(n: int, largest: int, random: np.random.Generator) -> list[int]:
    sizes: list[int] = []
    while left := n - sum(sizes):
        sizes.append(min(left, int(random.integers(1, largest + 1))))
    return sizes


def chunkings(model: Model, n: int) -> Iterator[list[int]]:
    """Sizes of calls that read n tokens: one call, single tokens, and three random splits."""
    random = np.random.default_rng(3)
    yield [n]
    yield [1] * n
    for _ in range(3):
        yield random_sizes(n, 2 * model.config.segment_len, random)


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def assert_same_state(a: State, b: State, *, tolerance: float) -> None:
    """Compare occupied slots, counters, usage and carried tensors."""
    assert a.length == b.length
    assert a.filled.tolist() == b.filled.tolist()
    for state in (a, b):
        assert state.filled_known in (None, tuple(state.filled.tolist()))
    assert a.position.tolist() == b.position.tolist()
    for row, filled in enumerate(a.filled.tolist()):
        real = (state.past[:, row, state.past.shape[2] - filled :] for state in (a, b))
        past = largest_difference(*real)
        n = a.length[row]
        segment = largest_difference(a.segment[:, row, :n], b.segment[:, row, :n])
        assert max(past, segment) <= tolerance, f"row {row}: slots differ by {past}, {segment}"
    assert largest_difference(a.usage, b.usage) <= (USAGE_TOLERANCE if tolerance else 0)
    assert a.carried.keys() == b.carried.keys()
    for name, carried in a.carried.items():
        assert largest_difference(carried, b.carried[name]) <= tolerance, name


def reload(model: Model, state: State) -> State:
    """Rebuild a state from `to_numpy` and its counters, as after loading a snapshot."""
    arrays = state.to_numpy()
    fresh = model.init_state(1)
    filled = arrays["past"].shape[1]
    if filled > fresh.past.shape[2]:  # a head whose past grows
        past = fresh.past.new_zeros(*fresh.past.shape[:2], filled, fresh.past.shape[3])
        fresh = replace(fresh, past=past)
    start = fresh.past.shape[2] - filled
    dtype = state.past.dtype
    fresh.past[:, 0, start:] = from_numpy(arrays["past"].copy(), dtype)
    fresh.segment[:, 0, : state.phase] = from_numpy(arrays["segment"].copy(), dtype)
    fresh.usage[:, 0] = torch.from_numpy(arrays["usage"].copy())
    for name, carried in fresh.carried.items():
        carried[:, 0] = torch.from_numpy(arrays[name].copy())
    fresh.filled.fill_(filled)
    fresh.position.fill_(int(state.position))
    known = None if fresh.filled_known is None else (filled,)
    return replace(fresh, length=state.length, filled_known=known)


def check_chunking(model: Model, *, tolerance: float) -> None:
    """Logits and state do not depend on how tokens are split into calls.

    This includes calls with gradients, which recompute the past.
    """
    n = 6 * model.config.segment_len + 3
    tokens = random_tokens(model, n, rows=2)
    with torch.no_grad():
        wanted, end = read(model, tokens, model.init_state(2))
    for index, sizes in enumerate(chunkings(model, n)):
        for gradients in (False, True) if index < 3 else (False,):
            with torch.set_grad_enabled(gradients):
                logits, state = read(model, tokens, model.init_state(2), sizes=sizes)
            difference = largest_difference(logits, wanted)
            assert difference <= tolerance, f"{sizes}, {gradients=}: logits differ by {difference}"
            assert_same_state(state, end, tolerance=tolerance)


def check_causality(model: Model) -> None:
    """Changing token t+1 changes no logits up to t, and changes those at t+1."""
    n = 4 * model.config.segment_len + 2
    tokens = random_tokens(model, n).expand(n, -1)
    other = (tokens + torch.eye(n, dtype=torch.int64)) % model.config.vocab_size  # row i: token i
    for sizes in ([n], random_sizes(n, 3, np.random.default_rng(5))):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                wanted, _ = read(model, tokens, model.init_state(n), sizes=sizes)
                logits, _ = read(model, other, model.init_state(n), sizes=sizes)
            same = (logits == wanted).all(dim=2)
            for edited in range(n):
                assert bool(same[edited, :edited].all()), f"token {edited} changed the past"
                assert not bool(same[edited, edited]), f"token {edited} changed nothing"


def check_reset(model: Model, *, tolerance: float) -> None:
    """A reset row equals a new stream, even if it contained NaN or infinity."""
    t = model.config.segment_len
    before, after = random_tokens(model, 3 * t, rows=3), random_tokens(model, 2 * t + 1, rows=3)
    rows = torch.tensor([True, False, True])
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            wanted, _ = read(model, after, model.init_state(3))
            _, old = read(model, before, model.init_state(3))
            poisoned = old.detach()
            for tensor in (poisoned.past, poisoned.segment, poisoned.usage):
                tensor[:, 0], tensor[:, 2] = torch.nan, torch.inf
            for tensor in poisoned.carried.values():
                if tensor.is_floating_point():
                    tensor[:, 0], tensor[:, 2] = torch.nan, torch.inf
            logits, _ = read(model, after, poisoned.reset_rows(rows))
        difference = largest_difference(logits[rows], wanted[rows])
        assert difference <= tolerance, f"{gradients=}: logits differ by {difference}"
        assert bool(logits[1].isfinite().all()), "a row that was not reset depends on the others"


def check_purity(model: Model) -> None:
    """Reading and committing do not modify a state; forks are independent."""
    t = model.config.segment_len
    for n in (0, 5 * t, 5 * t + 1):
        with torch.no_grad():
            _check_forks(model, n)
    with torch.enable_grad():
        _check_forks(model, 5 * t + 1)


def _check_forks(model: Model, n: int) -> None:
    t = model.config.segment_len
    story = random_tokens(model, max(n, 1), seed=n)[:, :n]
    left, right = (random_tokens(model, t + 1, seed=100 + n + i) for i in range(2))

    def root() -> State:
        state = model.init_state(1)
        return read(model, story, state)[1] if n else state

    alone = [list(_one_by_one(model, branch, root())) for branch in (left, right)]
    shared = root()
    before = bits_of(shared)
    # Both forks read alternately; afterwards, the root is read from again.
    turns = (_one_by_one(model, branch, shared) for branch in (left, right))
    for step, results in enumerate(zip(*turns, strict=True)):
        for fork, (logits, digest) in enumerate(results):
            wanted_logits, wanted_digest = alone[fork][step]
            same = torch.equal(logits, wanted_logits) and digest == wanted_digest
            assert same, f"{n} tokens, then {step}: fork {fork} differs from reading alone"
        assert bits_of(shared) == before, f"{n} tokens, then {step}: a fork changed the root"
    for (logits, digest), wanted in zip(_one_by_one(model, left, shared), alone[0], strict=True):
        assert torch.equal(logits, wanted[0]) and digest == wanted[1]
    # A state with a full segment can be closed more than once.
    _, full = model(random_tokens(model, t - shared.phase), shared)
    before = bits_of(full)
    once, twice = model.commit(full)[0], model.commit(full)[0]
    assert once.digest() == twice.digest() != full.digest() and bits_of(full) == before


def _one_by_one(model: Model, tokens: Tensor, state: State) -> Iterator[tuple[Tensor, str]]:
    cache = Cache()
    for column in range(tokens.shape[1]):
        logits, state = read(model, tokens[:, column : column + 1], state, cache=cache)
        yield logits, state.digest()


def bits_of(state: State) -> tuple[object, ...]:
    """Digest and tensor bytes of a state, without the undefined columns of the segment."""
    tensors = (state.past, state.usage, state.filled, state.position, *state.carried.values())
    data = (t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    return (state.digest(), state.length, *data)


def check_rows(model: Model, *, tolerance: float) -> None:
    """A row of a batch equals the same stream read alone, whatever the other rows contain and
    whenever they started; `reset_rows` does not affect other rows."""
    t = model.config.segment_len
    tokens = random_tokens(model, 7 * t + 3, rows=3)
    begins = [0, 2 * t, 5 * t]  # row i is reset there

    def batch(tokens: Tensor) -> tuple[Tensor, State]:
        outputs, state = [], model.init_state(3)
        for start, stop in zip(begins, [*begins[1:], tokens.shape[1]], strict=True):
            state = state.reset_rows(torch.tensor([start == begin > 0 for begin in begins]))
            logits, state = read(model, tokens[:, start:stop], state)
            outputs.append(logits)
        return torch.cat(outputs, dim=1), state

    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            wanted, end = batch(tokens)
            for row, begin in enumerate(begins):
                alone, state = read(model, tokens[row : row + 1, begin:], model.init_state(1))
                difference = largest_difference(wanted[row : row + 1, begin:], alone)
                assert difference <= tolerance, f"row {row}: logits differ by {difference}"
                assert_same_state(end.rows(row), state, tolerance=tolerance)
            other = tokens.clone()
            other[1] = (other[1] + 1) % model.config.vocab_size
            logits, state = batch(other)
            same = (logits == wanted).flatten(1).all(dim=1).tolist()
            assert same == [True, False, True], f"a change in row 1 changed rows: {same}"
            for row in (0, 2):
                assert state.rows(row).digest() == end.rows(row).digest()
    with torch.no_grad():
        _, state = read(model, tokens[:, : 5 * t], model.init_state(3))
        reset = state.reset_rows(torch.tensor([False, True, False]))
        assert reset.rows(1).digest() == model.init_state(1).digest()
        for row in (0, 2):
            assert reset.rows(row).digest() == state.rows(row).digest()
        rest, _ = read(model, tokens[:, 5 * t :], reset)
        wanted, _ = read(model, tokens[:, 5 * t :], state)
        same = (rest == wanted).flatten(1).all(dim=1).tolist()
        # A model without memory has nothing to reset.
        forgetful = state.past.shape[2] == 0 and not state.carried
        assert same == [True, forgetful, True], f"resetting row 1 changed rows: {same}"


def check_prefill(model: Model) -> None:
    """`prefill` gives the state and the cache of `hidden`, bit for bit, wherever rows stand."""
    t = model.config.segment_len
    sizes = [1, t] if t == 1 else [t, t - 1, 1, 2, t - 2, *[t] * 4, t - 1]
    alone = [model.init_state(1)]
    for n in (2 * t, 2 * t + 1):
        alone.append(read(model, random_tokens(model, n), model.init_state(1))[1])
    for start in (alone[0], State.stack(alone[:2]), State.stack(alone[1:])):
        wanted, found, theirs, ours = start, start, Cache(), Cache()
        for n, size in enumerate(sizes):
            tokens = random_tokens(model, size, rows=start.batch_size, seed=n)
            for piece in pieces(model, tokens, found):
                _, wanted = model.hidden(piece, wanted, theirs)
                found = model.prefill(piece, found, ours)
                assert bits_of(found) == bits_of(wanted), f"{n} calls, then {piece.shape[1]} tokens"
                wanted, found = close(model, wanted, theirs), close(model, found, ours)
                for mine, other in zip(
                    ours.keys + ours.values, theirs.keys + theirs.values, strict=True
                ):
                    assert torch.equal(mine, other)
    with torch.enable_grad():
        assert bits_of(model.prefill(tokens[:, :1], found)) == bits_of(
            model.hidden(tokens[:, :1], found)[1]
        )


def check_bounded(model: Model, *, n_segments: int = 60) -> None:
    """Neither a state nor its cache grows."""
    t = model.config.segment_len
    state, cache = model.init_state(1), Cache()
    tokens = random_tokens(model, n_segments * t)
    sizes = set()
    with torch.no_grad():
        for start in range(0, n_segments * t, t):
            logits, state = read(model, tokens[:, start : start + t], state, cache=cache)
            assert bool(logits.isfinite().all())
            sizes.add((model.init_state(1).nbytes, state.nbytes, cache.nbytes))
            assert int(state.filled) <= state.past.shape[2]
    assert int(state.position) == n_segments * t
    assert len(sizes) == 1 and {a - b for a, b, _ in sizes} == {0}, f"bytes {sizes}"


def check_resume(model: Model) -> None:
    """A saved and loaded state gives bitwise equal results."""
    t = model.config.segment_len
    random = np.random.default_rng(7)
    at_once, in_tokens, at_random = range(3)
    for n, ways in (
        (1, [in_tokens]),
        (5 * t, [at_once, at_random]),
        (5 * t + 1, [at_once, in_tokens]),
        (6 * t - 1, [in_tokens, at_random]),
    ):
        tokens, rest = random_tokens(model, n, seed=n), random_tokens(model, 2 * t + 2, seed=n + 1)
        # Single tokens beyond the next commit, then random sizes.
        calls = [1] * (t + 1) + random_sizes(t + 1, t, random)
        splits = ([n], [1] * n, random_sizes(n, 2 * t, random))
        for sizes in (splits[way] for way in ways):
            with torch.no_grad():
                cache, fresh = Cache(), Cache()
                _, state = read(model, tokens, model.init_state(1), sizes=sizes, cache=cache)
                digest, loaded = state.digest(), reload(model, state)
                model.settle(state, cache)
                assert digest == loaded.digest() == state.digest()
                live, back, start = state, loaded, 0
                for size in calls:
                    piece = rest[:, start : start + size]
                    wanted, live = read(model, piece, live, cache=cache)
                    logits, back = read(model, piece, back, cache=fresh)
                    where = f"{n} tokens in {sizes}, then {calls}, at {start}"
                    assert torch.equal(logits, wanted), f"logits differ: {where}"
                    assert live.digest() == back.digest(), f"states differ: {where}"
                    start += size
