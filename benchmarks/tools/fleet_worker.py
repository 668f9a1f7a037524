"""One worker of a fleet, simulated: a core that reads and writes for many sessions at once."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What one worker can do. A worker is one process on one core.

    Attributes:
        rows, speeds: measured tokens a second, written in so many rows at once, ascending.
        reading: tokens a second of reading a text.
        max_rows: requests that are in work; others wait in order.
        held: sessions in memory; the least recently used are in the store.
        resume, commit: seconds that a request waits for the store before and after its work.
    """

    rows: Sequence[float]
    speeds: Sequence[float]
    reading: float
    max_rows: int
    held: int
    resume: float
    commit: float

    def speed(self, n: float) -> float:
        """Tokens a second of n rows together, interpolated between what was measured."""
        return float(np.interp(n, self.rows, self.speeds))


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests of one worker.

    Attributes:
        rate: requests a second, a Poisson process.
        sessions: of this worker; each request is of one of them, all alike.
        read, write: mean tokens that a request reads and writes, exponentially distributed.
    """

    rate: float
    sessions: int
    read: float
    write: float


@dataclass(eq=False)
class _Request:
    arrived: float
    reads: float  # tokens left
    writes: float


def response_times(
    worker: Worker, traffic: Traffic, *, requests: int, seed: int = 1
) -> tuple[np.ndarray, float]:
    """Simulate one worker.

    The core is shared equally by the requests in work. Of n, the share of those that write goes
    further the more of them there are, by `Worker.speed`. Waits for the store overlap with others'
    work and take no time of the core.

    Returns:
        Seconds from the arrival of each request to its saved answer, of those after the first
        tenth, in the order in which they ended; and the share of requests whose session was in
        memory.
    """
    random = np.random.default_rng(seed)
    at = np.cumsum(random.exponential(1 / traffic.rate, requests))
    reads, writes = (random.exponential(mean, requests) for mean in (traffic.read, traffic.write))
    whose = random.integers(0, traffic.sessions, requests)
    held: OrderedDict[int, None] = OrderedDict()
    ready, hits = np.empty(requests), 0
    for index, session in enumerate(whose.tolist()):
        hit = held.pop(session, 0) is None
        held[session] = None
        if len(held) > worker.held:
            held.popitem(last=False)
        hits += hit
        ready[index] = at[index] + (0.0 if hit else worker.resume)
    arriving = [
        _Request(at[index], reads[index], writes[index]) for index in np.argsort(ready).tolist()
    ]
    times = _shared(worker, arriving, np.sort(ready))
    return np.asarray(times[requests // 10 :]), hits / requests


def _shared(worker: Worker, arriving: Sequence[_Request], ready: np.ndarray) -> list[float]:
    """Response times of requests that begin to wait for a row at `ready`."""
    now, begun = 0.0, 0
    waiting: list[_Request] = []
    working: list[_Request] = []
    times: list[float] = []
    while begun < len(arriving) or working:
        n, n_writing = len(working), sum(not each.reads for each in working)
        reads = worker.reading / max(n, 1)  # tokens a second of each
        writes = worker.speed(n_writing) / max(n, 1) if n_writing else 0.0
        left = [each.reads / reads if each.reads else each.writes / writes for each in working]
        until = ready[begun] - now if begun < len(arriving) else np.inf
        step = min([until, *left])
        now += step
        for each, seconds in zip(working, left, strict=True):
            done = seconds <= step  # exactly, for the first of them
            if each.reads:
                each.reads = 0.0 if done else each.reads - step * reads
            else:
                each.writes = 0.0 if done else each.writes - step * writes
        for each in [each for each in working if not each.reads and not each.writes]:
            working.remove(each)
            times.append(now + worker.commit - each.arrived)
        if step == until:
            waiting.append(arriving[begun])
            begun += 1
        while waiting and len(working) < worker.max_rows:
            working.append(waiting.pop(0))
    return times
