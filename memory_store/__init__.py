"""Sessions on disk: plain Zarr v3 groups, published by create-only refs.

    session.json                      what the session is; written once
    refs/<branch>/<number>.json       where a branch points; the last one is its head
    commits/<position>-<random>.zip   what is new in a snapshot: a Zarr group (see `format.packing`)
    log/<position>-<random>.zip       record, token ids and rows of logs of a deleted snapshot
    past/<position>-<random>.json     record alone: ids and rows were deleted too
    pins/<name>.json                  commits that garbage collection never deletes
    pinned/<name>.json                a copy of each pin
    lost/                             damaged files that `recover` replaced

A session lies in a folder, in object storage or in memory. Commits of schema 1 are folders.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_store.errors import (
    Conflict,
    Corrupt,
    Locked,
    Mismatch,
    NotFound,
    StoreError,
    StoreFull,
    UnsupportedSchema,
)
from memory_store.protocol import MemoryStore
from memory_store.types import JSON, Commit, LogRows, Ref, Retention, Snapshot, Verified, Window

if TYPE_CHECKING:
    from memory_store.media import DirectoryStore, InMemoryStore, ObjectStore
    from memory_store.places import create_store, open_store

__all__ = [
    "JSON",
    "Commit",
    "Conflict",
    "Corrupt",
    "DirectoryStore",
    "InMemoryStore",
    "Locked",
    "LogRows",
    "MemoryStore",
    "Mismatch",
    "NotFound",
    "ObjectStore",
    "Ref",
    "Retention",
    "Snapshot",
    "StoreError",
    "StoreFull",
    "UnsupportedSchema",
    "Verified",
    "Window",
    "create_store",
    "open_store",
]

# Imported on first use: the types alone do not need the libraries of the stores.
_LATER = {
    "DirectoryStore": "memory_store.media",
    "InMemoryStore": "memory_store.media",
    "ObjectStore": "memory_store.media",
    "create_store": "memory_store.places",
    "open_store": "memory_store.places",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
