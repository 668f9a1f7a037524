"""How fast a model reads and writes, and what memory that takes, without text or a store."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.tools.timing import median_interval, ratio, side_by_side
from streamlm.lab.results import peak_memory, reset_peak_memory
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.sampling import Sampling, sample
from streamlm.runtime.stream import advance, score
from streamlm.state import State

Place = tuple[State, Cache]  # a stream's state, and the keys and values of what it has read


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _timed_from(place: Place, device: torch.device, work: Callable[..., object]) -> float:
    """Seconds of a call that goes on from a place; the next one finds it as it was."""
    state, cache = place[0], place[1].copy()
    return _timed(device, lambda: work(state, cache))


def _tokens(model: Model, rows: int, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, n), generator=generator)
    return ids.to(model.device)


def read_to(model: Model, tokens: int, state: State, cache: Cache, *, block: int) -> State:
    """Score blocks of tokens until the stream is at least `tokens` long."""
    ids = _tokens(model, state.batch_size, block + 1)
    while int(state.position[0]) < tokens:
        _, state = score(model, ids[:, :-1], ids[:, 1:], state, cache)
    return state


def write(model: Model, n: int, state: State, cache: Cache) -> State:
    """Sample n tokens one after another, in the first row of the state."""
    random, sampling = np.random.Generator(np.random.PCG64(0)), Sampling()
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    for _ in range(n):
        hidden, state = advance(model, token, state, cache)
        with torch.no_grad():
            logits = model.logits(hidden)[0]
        chosen = sample(logits, sampling, random=random, recent=np.zeros(0, np.int64))
        token = torch.full_like(token, chosen)
    return state


def stream_figures(
    model: Model, *, short: int, long: int, rows: int, repeats: int
) -> dict[str, Any]:
    """Reading and writing speed, and the same after `short` and after `long` tokens, in turns.

    Args:
        rows: streams read side by side, for one of the figures.
    """
    device, t = model.device, model.config.segment_len
    block, cuda = 8 * t, device.type == "cuda"
    memory: dict[str, int] = {}
    reset_peak_memory()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    places: dict[int, Place] = {}
    state, cache = model.init_state(1), Cache()
    started = time.perf_counter()
    for length in (short, long):
        state = read_to(model, length, state, cache, block=block)
        _wait(device)
        peak = torch.cuda.max_memory_allocated(device) if cuda else peak_memory()
        memory[f"peak_bytes_after_{length}"] = peak
        memory[f"state_bytes_after_{length}"] = state.nbytes
        places[length] = state, cache.copy()
    whole = int(state.position[0]) / (time.perf_counter() - started)
    many = model.init_state(rows), Cache()
    ids = {n: _tokens(model, n, block + 1) for n in (1, rows)}

    def reading(of: Place) -> Callable[[], float]:
        tokens = ids[of[0].batch_size]
        return lambda: _timed_from(of, device, partial(score, model, tokens[:, :-1], tokens[:, 1:]))

    def writing(of: Place) -> Callable[[], float]:
        return lambda: _timed_from(of, device, partial(write, model, t))

    young, old = places[short], places[long]
    read = side_by_side(reading(young), reading(old), repeats=repeats)
    wrote = side_by_side(writing(young), writing(old), repeats=repeats)
    batch = [reading(many)() for _ in range(repeats + 1)][1:]
    return {
        "tokens": {"short": short, "long": long},
        "reading_tokens_per_second_whole_stream": whole,
        "reading_tokens_per_second": block / float(np.median(read[1])),
        f"reading_tokens_per_second_{rows}_rows": rows * block / float(np.median(batch)),
        "writing_tokens_per_second": t / float(np.median(wrote[1])),
        "reading_ms_per_block": median_interval([s * 1000 for s in read[1]]),
        "block": block,
        "reading_long_to_short": ratio(read[1], read[0]),
        "writing_long_to_short": ratio(wrote[1], wrote[0]),
        "memory": memory,
        "memory_long_to_short": memory[f"peak_bytes_after_{long}"]
        / memory[f"peak_bytes_after_{short}"],
    }
