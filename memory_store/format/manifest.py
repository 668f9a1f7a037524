"""The attributes of a commit: all that is known about it besides the arrays' bytes.

The sha256 of the canonical attributes is the commit's id. They name the parent and the window by
id, so an id vouches for everything behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from memory_store.format.json import canonical, sha256
from memory_store.format.zarr import ArraySpec, Stored, group_document
from memory_store.types import Commit

SCHEMA = 2  # 1 had a folder for each commit
BEFORE = b'{"attributes":'  # they come first in a canonical document
MAX_WINDOW = 16  # commits that are read to rebuild a state, this one included


@dataclass(frozen=True)
class Slots:
    """A window of this commit as a whole; its array holds only the newest of its slots.

    Attributes:
        shape: of the whole window.
        dtype: a key of `zarr.FILL`.
        axis: the axis that grows.
        end: slots appended since the stream began.
        capacity: most slots that the window holds.
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
class Held:
    """The slots [first, end) of a window that some commit holds.

    Attributes:
        crc32c: of their chunks.
        start: where they lie; see `zarr.Stored`.
    """

    first: int
    end: int
    crc32c: tuple[int, ...]
    start: int | None

    def stored(self, slots: Slots) -> Stored:
        """The array that holds them, a part of the window `slots`."""
        shape = list(slots.shape)
        shape[slots.axis] = self.end - self.first
        return Stored(tuple(shape), slots.dtype, self.crc32c, start=self.start)


@dataclass(frozen=True)
class Source:
    """A commit and those of its slots that a later one still needs, by window.

    With them in its own attributes, a commit is loaded without reading those of the others.
    """

    commit: Commit
    held: Mapping[str, Held]


@dataclass(frozen=True)
class Manifest:
    """A commit's attributes, checked.

    Attributes:
        session: the session it belongs to.
        created: seconds since 1970.
        position: tokens read.
        depth: commits before it on the way to the first.
        parent: the commit it continues, None for the first.
        jump: a commit further back and its depth, for long walks (see `walk`); None for the
            first.
        window: the other commits that hold slots of its windows, oldest first.
        slots: name → window.
        arrays: name → array in this commit: windows, small arrays, tokens.
        state: the snapshot's own attributes.
        fingerprints: of the weights, the tokenizer, ….
        libraries: versions that wrote it.
        left: what the medium has of it: "all", "log" (this and the token ids) or "record" (this).
        schema: of what was written.
    """

    session: str
    created: float
    position: int
    depth: int
    parent: Commit | None
    jump: tuple[Commit, int] | None
    window: tuple[Source, ...]
    slots: Mapping[str, Slots]
    arrays: Mapping[str, ArraySpec]
    state: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    libraries: Mapping[str, str]
    left: str = "all"
    schema: int = SCHEMA

    def held(self, name: str) -> Held:
        """The slots of window `name` that this commit itself holds."""
        slots, array = self.slots[name], self.arrays[name]
        return Held(slots.end - array.shape[slots.axis], slots.end, array.crc32c, array.start)

    def sources(self, commit: Commit) -> list[Source]:
        """Who holds its slots, newest first; `commit` is its own address."""
        own = Source(commit, {name: self.held(name) for name in self.slots})
        return [own, *reversed(self.window)]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """As they stand in the group's `zarr.json`."""
        jump = self.jump and {**_address(self.jump[0]), "depth": self.jump[1]}
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
        """The group's `zarr.json` as it is written, its attributes made only once."""
        arrays = tuple((name, spec.shape, spec.dtype) for name, spec in self.arrays.items())
        return BEFORE + self._canonical + _after(arrays)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The group's `zarr.json`."""
        return group_document(self.attributes, self.arrays)


def record(manifest: Manifest) -> bytes:
    """What is kept of a commit's document where its arrays are let go of."""
    return canonical({"attributes": manifest.attributes})


@lru_cache(maxsize=64)  # the same for commit after commit
def _after(arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> bytes:
    """What stands behind the attributes in a group's canonical `zarr.json`."""
    found = {name: Stored(shape, dtype, ()) for name, shape, dtype in arrays}
    document = canonical(group_document({}, found))
    assert document.startswith(BEFORE + b"{}")
    return document[len(BEFORE) + 2 :]


def _address(commit: Commit) -> dict[str, Any]:
    return {"commit": commit.name, "id": commit.id, "position": commit.position}
