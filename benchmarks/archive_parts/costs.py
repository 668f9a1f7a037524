"""What an archive costs: bytes a token, a question's time, and reading with it and without."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.lab.results import peak_memory, reset_peak_memory
from streamlm.memory.recall import ReadKeys
from streamlm.sessions.recall import PROPOSED
from streamlm.sessions.session import Session

QUESTIONS = (
    "What is the number of Margaret Whitcombe's locker?",
    "In which town was Silas Finch born?",
    "What is the pass key for gate 731?",
    "Who said that the ship would never reach the harbour?",
)


def question_costs(session: Session, *, rounds: int) -> dict[str, Any]:
    """Seconds of a search of the whole session, and memory that it takes at most."""
    session.recall(QUESTIONS[0])  # finds where the rows lie
    reset_peak_memory()
    before, seconds = peak_memory(), []
    for _ in range(rounds):
        for question in QUESTIONS:
            began = time.process_time()
            session.recall(question)
            seconds.append(time.process_time() - began)
    return {
        "position": session.position,
        "median_cpu_seconds": float(np.median(seconds)),
        "slowest_cpu_seconds": max(seconds),
        "growth_bytes": peak_memory() - before,
    }


def search_costs(session: Session, *, times: int, rounds: int) -> dict[str, Any]:
    """Seconds to search the keys alone, and as many times over, as in a session so much longer."""
    live = session._live
    archive, stop = live.archive, live.recall_stop
    assert archive is not None
    read = partial(archive.read, live.require_store("recall").store, session.saved, session.state)
    found: dict[str, Any] = {}
    for n in (1, times):
        seconds = []
        for question in QUESTIONS[:rounds]:
            began = time.process_time()
            search = archive.ask(
                question,
                session.checkpoint.tokenizer,
                repeated(read, stop, n),
                session.state,
                stop=n * stop,
            )
            search.best(PROPOSED)
            seconds.append(time.process_time() - began)
        found[str(n * stop)] = float(np.median(seconds))
    return found


def repeated(read: ReadKeys, length: int, n: int) -> ReadKeys:
    """The first `length` keys n times over."""

    def read_all(start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for begin in range(0, n * length, length):
            low, high = max(start, begin), min(stop, begin + length)
            if low < high:
                for first, keys in read(low - begin, high - begin):
                    yield first + begin, keys

    return read_all


def reading_costs(
    checkpoint: Checkpoint, text: str, folder: Path, *, rounds: int
) -> dict[str, Any]:
    """Seconds to feed a text to a session with an archive and without, in turns."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    size: dict[bool, int] = {}
    for n in range(rounds):
        for archive in (True, False) if n % 2 else (False, True):
            path = folder / f"{n}-{archive}.zarr"
            with streamlm.open(path, checkpoint, archive=archive) as session:
                began = time.process_time()
                session.feed(text)
                seconds[archive].append(time.process_time() - began)
                position = session.position
            size[archive] = sum(file.stat().st_size for file in path.rglob("*"))
    ratios = [off / on for on, off in zip(seconds[True], seconds[False], strict=True)]
    return {
        "tokens": position,
        "rounds": rounds,
        "speed_with_to_without": float(np.median(ratios)),
        "ratios": ratios,
        "tokens_per_cpu_second": position / float(np.median(seconds[True])),
        "bytes_per_token": (size[True] - size[False]) / position,
    }
