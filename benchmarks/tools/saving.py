"""Commit and resume of a session, beside the least that a disk can do with the same bytes.

The floors: `np.save` and fsync of what a commit adds, and `np.load` of the whole state.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import streamlm
from benchmarks.tools.timing import median_interval, ratio
from memory_store import DirectoryStore, Ref, Snapshot
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.snapshots import stream_to_snapshot


def added_bytes(before: Snapshot, after: Snapshot) -> np.ndarray:
    """What a commit of `after` writes that `before` lacks, as one row of bytes."""
    parts = []
    for name, window in after.windows.items():
        n_new = min(window.end - before.windows[name].end, window.data.shape[1])
        parts.append(window.data[:, window.data.shape[1] - n_new :])
    return flat([*parts, *after.arrays.values(), after.tokens])


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    """The bytes of arrays, as one row."""
    rows = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    return np.concatenate(rows)


def save_synced(path: Path, data: np.ndarray) -> float:
    """Seconds that `np.save` and fsync take."""
    started = time.perf_counter()
    with open(path, "wb") as file:
        np.save(file, data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def commit_costs(
    checkpoint: Checkpoint,
    stream: TextStream,
    *,
    tokens: int,
    ids: np.ndarray,
    folder: Path,
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Commits of a session that reads `tokens` tokens between two of them (not timed).

    A commit is what `Session.save` does: settle the stream, make a snapshot, hand it over.
    """
    # From the middle of a segment on: a state in general has an open one.
    cache, begin = Cache(), ids[: checkpoint.model.config.segment_len // 2]
    stream = stream.read_ids(checkpoint, begin, cache=cache)
    store = DirectoryStore.create(folder, fingerprints=checkpoint.fingerprints)
    ref: Ref | None = None
    before: Snapshot | None = None
    commits: list[float] = []
    floors: list[float] = []
    sizes: list[int] = []
    for index in range(repeats + 2):
        read = np.resize(ids, tokens)
        stream = stream.read_ids(checkpoint, read, cache=cache)
        # A store's first commit stands for all the tokens before it.
        log = np.zeros(stream.position, np.int32) if before is None else read
        started = time.perf_counter()
        stream = stream.settled(checkpoint, cache)
        snapshot = stream_to_snapshot(
            stream, checkpoint.model, tokens=log, attributes={"reading": None}
        )
        ref = store.commit(snapshot, parent=ref, fingerprints=checkpoint.fingerprints)
        spent = time.perf_counter() - started
        if before is not None and index > 1:  # the first ones create folders and import Zarr
            data = added_bytes(before, snapshot)
            sizes.append(data.nbytes)
            commits.append(spent)
            floors.append(save_synced(folder.parent / f"{folder.name}-{index}.npy", data))
            progress()
        before = snapshot
    return {
        "tokens_between": tokens,
        "added_bytes": int(np.median(sizes)),
        "ms": median_interval([s * 1000 for s in commits]),
        "floor_ms": median_interval([s * 1000 for s in floors]),
        "to_floor": ratio(commits, floors),
    }


def resume_costs(
    checkpoint: Checkpoint,
    path: Path,
    *,
    folder: Path,
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """`streamlm.open` of a session with the model loaded, files in the system's cache."""
    with streamlm.open(path, checkpoint, readonly=True) as session:
        whole = flat(list(session.state.to_numpy().values()))
        position = session.position
    file = folder / "whole.npy"
    save_synced(file, whole)
    resumes: list[float] = []
    floors: list[float] = []
    for index in range(repeats + 1):
        started = time.perf_counter()
        session = streamlm.open(path, checkpoint, readonly=True)
        spent = time.perf_counter() - started
        session.close()
        started = time.perf_counter()
        np.load(file)
        floor = time.perf_counter() - started
        if index:
            resumes.append(spent)
            floors.append(floor)
            progress()
    return {
        "position": position,
        "state_bytes": whole.nbytes,
        "ms": median_interval([s * 1000 for s in resumes]),
        "floor_ms": median_interval([s * 1000 for s in floors]),
        "to_floor": ratio(resumes, floors),
    }
