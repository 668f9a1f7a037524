"""Valid sessions of both schemas, which the tests forge."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from memory_store import DirectoryStore
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


@pytest.fixture(params=["store", "old"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)
