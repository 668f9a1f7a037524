"""The manifest of a commit: its attributes, which describe everything but the arrays' bytes.

The sha256 of the canonical attributes is the commit's id. They name the parent and the commits that
hold slots of the windows by id, so an id authenticates the whole history behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from memory_store.format.json import canonical, sha256
from memory_store.format.names import TOKENS
from memory_store.format.zarr import ArraySpec, StoredArray, group_document
from memory_store.types import Commit

SCHEMA = 2  # commits of schema 1 are folders
SCHEMA_WITH_LOGS = 3  # of commits that bring rows of logs; older versions would drop them
BEFORE = b'{"attributes":'  # the beginning of a canonical document
MAX_WINDOW = 16  # commits that hold slots of one snapshot, including its own commit


@dataclass(frozen=True)
class WindowSpec:
    """A whole window of a commit, whose own array holds the newest slots only.

    Attributes:
        shape: of the whole window.
        dtype: a key of `zarr.FILL`.
        axis: the axis that grows.
        end: slots appended since the stream began.
        capacity: the maximal number of slots in the window.
    """

    shape: tuple[int, ...]
    dtype: str
    axis: int
    end: int
    capacity: int

    @property
    def start(self) -> int:
        """The number of the oldest slot in the window."""
        return self.end - self.shape[self.axis]


@dataclass(frozen=True)
class StoredSlots:
    """The slots [first, end) of a window, stored in one commit.

    Attributes:
        first: number of the first slot.
        end: number after the last slot.
        crc32c: of each chunk, in order.
        start: offset in the commit's file; see `zarr.StoredArray`.
    """

    first: int
    end: int
    crc32c: tuple[int, ...]
    start: int | None

    def as_array(self, slots: WindowSpec) -> StoredArray:
        """The array that holds these slots of the window `slots`."""
        shape = list(slots.shape)
        shape[slots.axis] = self.end - self.first
        return StoredArray(tuple(shape), slots.dtype, self.crc32c, start=self.start)


@dataclass(frozen=True)
class Source:
    """A commit and the slots in it that a later commit needs, by window.

    The later commit repeats their checksums, so that it loads without reading other manifests.
    """

    commit: Commit
    held: Mapping[str, StoredSlots]


@dataclass(frozen=True)
class Manifest:
    """The checked attributes of a commit.

    Attributes:
        session: the id of its session.
        created: seconds since 1970.
        position: tokens read.
        depth: number of ancestors.
        parent: the commit it continues; None for the first commit.
        jump: an older ancestor and its depth, for long walks (see `history.walk`); None for the
            first commit.
        window: the other commits that hold slots of its windows, oldest first.
        slots: name → window.
        arrays: name → array in this commit: new slots, small arrays, tokens, rows of logs.
        state: the attributes of the snapshot.
        fingerprints: of the weights, the tokenizer, ….
        libraries: versions of the libraries that wrote it.
        retained: what still exists: "all"; "log", the record and the arrays `logged`; or "record".
        schema: the version of the format.
        logs: name → position of the first row in the array of that name.
    """

    session: str
    created: float
    position: int
    depth: int
    parent: Commit | None
    jump: tuple[Commit, int] | None
    window: tuple[Source, ...]
    slots: Mapping[str, WindowSpec]
    arrays: Mapping[str, ArraySpec]
    state: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    libraries: Mapping[str, str]
    retained: str = "all"
    schema: int = SCHEMA
    logs: Mapping[str, int] = field(default_factory=dict)

    @property
    def logged(self) -> dict[str, ArraySpec]:
        """The arrays that may outlive the snapshot: the token ids and the rows of logs."""
        return {name: self.arrays[name] for name in (TOKENS, *self.logs)}

    def held(self, name: str) -> StoredSlots:
        """The slots of window `name` that are stored in this commit."""
        slots, array = self.slots[name], self.arrays[name]
        return StoredSlots(
            slots.end - array.shape[slots.axis], slots.end, array.crc32c, array.start
        )

    def sources(self, commit: Commit) -> list[Source]:
        """The commits that hold its slots, newest first; `commit` is its own address."""
        own = Source(commit, {name: self.held(name) for name in self.slots})
        return [own, *reversed(self.window)]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes in the group's `zarr.json`."""
        jump = self.jump and {**_address(self.jump[0]), "depth": self.jump[1]}
        logs = {name: {"start": start} for name, start in self.logs.items()}
        return {
            "schema": self.schema,
            "session": self.session,
            "created": self.created,
            "position": self.position,
            "depth": self.depth,
            "parent": self.parent and _address(self.parent),
            "jump": jump,
            "window": [
                {
                    **_address(source.commit),
                    "slots": {
                        name: {
                            "first": held.first,
                            "end": held.end,
                            "crc32c": list(held.crc32c),
                            **({} if held.start is None else {"start": held.start}),
                        }
                        for name, held in source.held.items()
                    },
                }
                for source in self.window
            ],
            "slots": {
                name: {
                    "shape": list(slots.shape),
                    "dtype": slots.dtype,
                    "axis": slots.axis,
                    "end": slots.end,
                    "capacity": slots.capacity,
                }
                for name, slots in self.slots.items()
            },
            "arrays": {
                name: {
                    "shape": list(spec.shape),
                    "dtype": spec.dtype,
                    "crc32c": list(spec.crc32c),
                    "sha256": spec.sha256,
                }
                for name, spec in self.arrays.items()
            },
            "state": self.state,
            "fingerprints": dict(self.fingerprints),
            "libraries": dict(self.libraries),
            # Commits without logs have the attributes, and the ids, of earlier versions.
            **({"logs": logs} if logs else {}),
        }

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical attributes, in hex."""
        return sha256(self._canonical)

    @cached_property
    def _canonical(self) -> bytes:
        return canonical(self.attributes)

    @property
    def data(self) -> bytes:
        """The bytes of the group's `zarr.json`; the attributes are encoded once."""
        arrays = tuple(
            (name, spec.shape, spec.dtype, spec.limit) for name, spec in self.arrays.items()
        )
        return BEFORE + self._canonical + _after(arrays)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The content of the group's `zarr.json`."""
        return group_document(self.attributes, self.arrays)


def record(manifest: Manifest) -> bytes:
    """The record of a commit: the part of its document that survives its arrays."""
    return canonical({"attributes": manifest.attributes})


@lru_cache(maxsize=64)  # consecutive commits have equal shapes
def _after(arrays: tuple[tuple[str, tuple[int, ...], str, int], ...]) -> bytes:
    """The part of a group's canonical `zarr.json` after its attributes."""
    specs = {
        name: StoredArray(shape, dtype, (), limit=limit) for name, shape, dtype, limit in arrays
    }
    document = canonical(group_document({}, specs))
    assert document.startswith(BEFORE + b"{}")
    return document[len(BEFORE) + 2 :]


def _address(commit: Commit) -> dict[str, Any]:
    return {"commit": commit.name, "id": commit.id, "position": commit.position}
