"""Snapshots that the store accepts but that hold no state of a session."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memory_store.backends.lock
import streamlm
from memory_store import Corrupt, DirectoryStore, Snapshot, Window
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.stores import assert_helpful, files


def lacking(key: str) -> Callable[[Snapshot], Snapshot]:
    def change(snapshot: Snapshot) -> Snapshot:
        attributes = {name: item for name, item in snapshot.attributes.items() if name != key}
        return replace(snapshot, attributes=attributes)

    return change


def saying(key: str, value: Any) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: replace(snapshot, attributes={**snapshot.attributes, key: value})


def with_array(name: str, array: np.ndarray) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: replace(snapshot, arrays={**snapshot.arrays, name: array})


def with_memory(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Snapshot], Snapshot]:
    def apply(snapshot: Snapshot) -> Snapshot:
        window = snapshot.windows["memory"]
        changed = Window(change(window.data), window.axis, window.end, window.capacity)
        return replace(snapshot, windows={**snapshot.windows, "memory": changed})

    return apply


CHANGES = {
    **{f"no {key}": lacking(key) for key in ("pending", "tail", "cut", "random", "reading")},
    "no stored dtype": lacking("stored_dtype"),
    "an object's dtype": saying("stored_dtype", "object"),
    "a function's name": saying("stored_dtype", "load"),
    "another dtype": saying("stored_dtype", "bfloat16"),
    "an unknown reading": saying("reading", {"unknown": 1}),
    "a list of readings": saying("reading", [1]),
    "slots of another dtype": with_memory(lambda data: data.astype(np.float64)),
    "integers for slots": with_memory(lambda data: data.view(np.int32)),
    "fewer slots": with_memory(lambda data: data[:, 1:]),
    "narrower slots": with_memory(lambda data: data[:, :, :-1]),
    "no windows": lambda snapshot: replace(snapshot, windows={}),
    "no arrays": lambda snapshot: replace(snapshot, arrays={}),
    "usage of one value": with_array("usage", np.ones((1, 1), np.float32)),
    "usage in integers": with_array("usage", np.ones((2, 16), np.int64)),
    "a segment of another length": with_array("segment", np.ones((2, 17, 32), np.float32)),
}


@pytest.fixture(scope="module")
def watching(tiny_folder: Callable[..., Path]) -> Checkpoint:
    """A model whose state has usage."""
    return load_checkpoint(tiny_folder(compression="most-used"), device="cpu")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hostile_snapshots_are_refused(
    change: Callable[[Snapshot], Snapshot], watching: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, watching) as session:
        session.feed("The whale, the sea, and the old captain said: never again upon it.")
        session.feed([" Why?"] if session.position % 16 == 0 else [" Never."])
        honest, digest = session.save(), session.state.digest()
    store = DirectoryStore.open(path)
    snapshot = replace(change(store.load(honest)), tokens=np.zeros(0, np.int32))
    store.commit(snapshot, parent=honest, fingerprints=watching.fingerprints)
    before = files(path)
    for readonly in (False, True):
        with pytest.raises(Corrupt) as caught:
            streamlm.open(path, watching, readonly=readonly)
        assert_helpful(caught.value)
    assert {**files(path), "refs/main/.lock": b""} == {**before, "refs/main/.lock": b""}
    store.publish(honest, branch="main")  # the last good snapshot can always be opened
    with streamlm.open(path, watching) as session:
        assert session.state.digest() == digest


def test_discarding_keeps_a_session_begun_by_another_process(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty session is discarded only if no other process has committed to it."""
    path, leave = tmp_path / "s.zarr", memory_store.backends.lock.WriterLock.__exit__
    first = streamlm.open(path, tiny)

    def slowly(lock: Any, *exception: object) -> None:
        monkeypatch.undo()
        leave(lock, *exception)
        with streamlm.open(path, tiny) as second:
            second.feed("What another was told is safe.")

    monkeypatch.setattr(memory_store.backends.lock.WriterLock, "__exit__", slowly)
    first.close()
    with streamlm.open(path, tiny, create=False) as session:
        assert session.position > 0
