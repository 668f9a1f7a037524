"""What a session leaves on disk: plain Zarr v3 groups, published by create-only refs."""

from memory_store.directory import DirectoryStore
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
