"""Every error of the store names a path and ends with a remedy."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import (
    Conflict,
    Corrupt,
    DirectoryStore,
    Locked,
    Mismatch,
    NotFound,
    Ref,
    Snapshot,
    StoreError,
    StoreFull,
    UnsupportedSchema,
    Window,
)
from memory_store.errors import from_os
from tests.support.stores import ROOT, Stream, assert_helpful, new_store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store, stream, head = new_store(tmp_path / "s.zarr"), Stream(), None
    for _ in range(3):
        stream.read(4, memory=4)
        head = store.commit(stream.snapshot(), parent=head)
    return store


def head(store: DirectoryStore) -> Ref:
    ref = store.head("main")
    assert ref is not None
    return ref


def lock_twice(store: DirectoryStore) -> None:
    with store.writer(), store.writer():
        pass


def commit_behind(store: DirectoryStore) -> None:
    store.commit(Snapshot(4, tokens=np.arange(4)), parent=None)


def lose(store: DirectoryStore, name: str) -> None:
    """Delete a file."""
    next(path for path in sorted(store.path.rglob(name)) if path.is_file()).unlink()
    DirectoryStore.open(store.path).verify()


def old(store: DirectoryStore) -> DirectoryStore:
    """Replace the session by one of schema 1, whose commits are folders."""
    shutil.rmtree(store.path)
    shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", store.path)
    return DirectoryStore.open(store.path)


def late_log(store: DirectoryStore) -> None:
    """A log that does not begin with the first token."""
    ref = store.commit(Snapshot(9, tokens=np.arange(2)), parent=None, branch="late")
    store.nearest(ref, 3)


def late_tokens(store: DirectoryStore) -> None:
    ref = store.commit(Snapshot(9, tokens=np.arange(2)), parent=None, branch="late")
    store.tokens(ref, 3, 9)


def too_large(store: DirectoryStore) -> None:
    path = store.path / "session.json"
    path.write_bytes(b" " * 2**25)
    DirectoryStore.open(store.path)


def later_schema(store: DirectoryStore) -> None:
    (store.path / "session.json").write_text('{"schema": 3}')
    DirectoryStore.open(store.path)


def a_link(store: DirectoryStore) -> None:
    path = store.path / "session.json"
    path.rename(store.path / "other")
    path.symlink_to(store.path / "other")
    DirectoryStore.open(store.path)


def too_little_memory(store: DirectoryStore) -> None:
    def fail(nbytes: int) -> np.ndarray:
        raise MemoryError

    manifest = store._commits.read(head(store).commit)
    store._commits.array(head(store).commit, manifest.arrays["usage"], "usage", allocate=fail)


@pytest.mark.parametrize(
    ("provoke", "kind"),
    [
        (lambda store: DirectoryStore.open(store.path / "elsewhere"), NotFound),
        (lambda store: new_store(store.path), StoreError),
        (lambda store: new_store(store.path / "session.json" / "below"), StoreError),
        (lambda store: store.nearest("nowhere", 1), NotFound),
        (late_log, NotFound),
        (late_tokens, NotFound),
        (commit_behind, Conflict),
        (lambda store: store.load(head(store), fingerprints={"model": "x"}), Mismatch),
        (lock_twice, Locked),
        (later_schema, UnsupportedSchema),
        (too_large, Corrupt),
        (a_link, Corrupt),
        (too_little_memory, Corrupt),
        (lambda store: lose(store, "session.json"), NotFound),
        (lambda store: lose(store, "000000000001.json"), Corrupt),
        (lambda store: lose(store, "*.zip"), Corrupt),
        (lambda store: lose(old(store), "zarr.json"), Corrupt),
        (lambda store: lose(old(store), "c.0*"), Corrupt),
    ],
)
def test_errors_name_a_path_and_a_remedy(
    store: DirectoryStore, provoke: Callable[[DirectoryStore], object], kind: type[StoreError]
) -> None:
    with pytest.raises(StoreError) as caught:
        provoke(store)
    assert type(caught.value) is kind
    assert_helpful(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_os_errors_name_a_path_and_a_remedy(number: int, tmp_path: Path) -> None:
    error = from_os(OSError(number, os.strerror(number)), "testing", tmp_path)
    assert isinstance(error, StoreFull) == (number == errno.ENOSPC)
    assert_helpful(error)


@pytest.mark.parametrize(
    "text",
    ["/: x. Restored it.", "/no/where/at: x. Restore it.", "x. Restore it.", "/: Restore"],
)
def test_unhelpful_messages_are_rejected(text: str) -> None:
    with pytest.raises(AssertionError):
        assert_helpful(StoreError(text))


def test_oversized_documents_are_not_written(tmp_path: Path) -> None:
    """A larger document could not be read back, so its commit would be acknowledged and lost."""
    long = "x" * 2**24
    with pytest.raises(ValueError, match="at most"):
        DirectoryStore.create(tmp_path / "a.zarr", attributes={"title": long})
    with pytest.raises(ValueError, match="at most"):
        DirectoryStore.create(tmp_path / "a.zarr", fingerprints={"model": long})
    store = new_store(tmp_path / "b.zarr")
    with pytest.raises(ValueError, match="at most"):
        store.commit(Snapshot(0), parent=None, fingerprints={"model": long})
    wrong: list[tuple[Any, int]] = [(2**53 + 1, 2), (1, 2**60), (1.0, 2), (True, 2)]
    for end, capacity in wrong:
        windows = {"w": Window(np.zeros((1, 1)), 0, end, capacity)}
        with pytest.raises(ValueError, match=r"at most|must be int"):
            store.commit(Snapshot(0, windows), parent=None)
    assert store.head("main") is None and not any((tmp_path / "b.zarr" / "commits").iterdir())
