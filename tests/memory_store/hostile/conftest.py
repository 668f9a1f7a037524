"""Valid sessions of all schemas, which the tests forge."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import DirectoryStore, LogRows
from tests.support.stores import ROOT, Stream, new_store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store, stream, head = new_store(tmp_path / "s.zarr", attributes={"a": [1]}), Stream(), None
    for _ in range(3):
        stream.read(4, memory=4, compressed=1)
        head = store.commit(stream.snapshot(), parent=head)
    return store


@pytest.fixture
def old(tmp_path: Path) -> DirectoryStore:
    """A session of schema 1, whose commits are folders."""
    shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", tmp_path / "old" / "s.zarr")
    return DirectoryStore.open(tmp_path / "old" / "s.zarr")


@pytest.fixture
def indexed(store: DirectoryStore) -> DirectoryStore:
    """A session whose newest commit brings rows of a log."""
    head = store.head("main")
    rows = {"keys": LogRows(2, np.arange(21, dtype=np.int8).reshape(7, 3))}
    store.commit(replace(store.load(head), tokens=np.zeros(0, int), logs=rows), parent=head)
    return store


@pytest.fixture(params=["store", "old"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)
