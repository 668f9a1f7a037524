"""What an archive costs: bytes a token, a question's time, and reading with it and without."""

import time
from pathlib import Path
from typing import Any

import numpy as np

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.lab.results import peak_memory, reset_peak_memory
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
