"""What a session leaves on disk: plain Zarr v3 groups, published by create-only refs."""

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
from memory_store.protocol import JSON, Commit, MemoryStore, Ref, Snapshot, Verified, Window

if TYPE_CHECKING:
    from memory_store.directory import DirectoryStore

__all__ = [
    "JSON",
    "Commit",
    "Conflict",
    "Corrupt",
    "DirectoryStore",
    "Locked",
    "MemoryStore",
    "Mismatch",
    "NotFound",
    "Ref",
    "Snapshot",
    "StoreError",
    "StoreFull",
    "UnsupportedSchema",
    "Verified",
    "Window",
]


def __getattr__(name: str) -> Any:
    # Not imported above: what only needs the types does not need the store's own libraries.
    if name == "DirectoryStore":
        from memory_store.directory import DirectoryStore

        return DirectoryStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
