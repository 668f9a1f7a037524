"""What a session leaves on disk: plain Zarr v3 groups, published by create-only refs.

    session.json                      what the session is; written once
    refs/<branch>/<number>.json       where a branch points; the last one is its head
    commits/<position>-<random>.zip   what is new in a snapshot: a Zarr group (see `format.packing`)
    log/<position>-<random>.zip       token ids and record of one whose state was let go
    past/<position>-<random>.json     the record alone
    pins/<name>.json                  what is kept whatever happens
    lost/                             damaged files that `recover` has set aside

In a folder, in object storage or in memory. Commits of the first schema are folders themselves.
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
from memory_store.types import JSON, Commit, Ref, Retention, Snapshot, Verified, Window

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

# Not imported above: what only needs the types does not need the stores' own libraries.
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
