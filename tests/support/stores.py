"""Helpers for tests of the memory store: streams to commit, and comparison bit by bit."""

import io
import os
import re
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from memory_store import Commit, Corrupt, DirectoryStore, Ref, Snapshot, StoreError, Window
from memory_store.format.packing import packed
from memory_store.format.zip import header_size
from memory_store.store import Store

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINTS = {"model": "m" * 64, "tokenizer": "t" * 64}


def new_store(path: Path, **options: Any) -> DirectoryStore:
    options = {"durability": "normal", "fingerprints": FINGERPRINTS, **options}
    return DirectoryStore.create(path, **options)


class Stream:
    """A random stream with the windows of a session; equal seeds give equal streams."""

    def __init__(self, seed: int = 0, *, memory: int = 12, compressed: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.capacity = {"memory": memory, "compressed": compressed}
        self.window = {name: self.slots(0) for name in self.capacity}
        self.end = dict.fromkeys(self.capacity, 0)
        self.position = 0
        self.unsaved = np.zeros(0, np.int32)

    def slots(self, count: int) -> np.ndarray:
        return self.rng.integers(0, 2**16, (3, 1, count, 4), dtype=np.uint16)

    def grow(self, name: str, count: int) -> None:
        grown = np.concatenate([self.window[name], self.slots(count)], axis=2)
        self.window[name] = grown[:, :, max(0, grown.shape[2] - self.capacity[name]) :]
        self.end[name] += count

    def read(self, tokens: int, *, memory: int = 0, compressed: int = 0) -> None:
        self.position += tokens
        ids = self.rng.integers(0, 5000, tokens, dtype=np.int32)
        self.unsaved = np.concatenate([self.unsaved, ids])
        self.grow("memory", memory)
        self.grow("compressed", compressed)

    def snapshot(self) -> Snapshot:
        saved = Snapshot(
            self.position,
            {
                name: Window(self.window[name], 2, self.end[name], self.capacity[name])
                for name in self.window
            },
            {"segment": self.slots(3), "usage": self.rng.random((3, 1, 5), dtype=np.float32)},
            self.unsaved,
            {"tail": "é\ud800", "rng": {"state": 2**127 + self.position}, "steps": [1, 2.5, None]},
        )
        self.unsaved = np.zeros(0, np.int32)
        return saved

    def resume(self, snapshot: Snapshot) -> None:
        self.position = snapshot.position
        self.unsaved = np.zeros(0, np.int32)
        for name, window in snapshot.windows.items():
            self.window[name], self.end[name] = window.data, window.end


def assert_equal(found: Snapshot, expected: Snapshot) -> None:
    assert found.position == expected.position
    assert found.attributes == expected.attributes
    assert_same_bits(found.tokens, expected.tokens)
    assert found.windows.keys() == expected.windows.keys()
    for name, window in expected.windows.items():
        other = found.windows[name]
        described = (window.axis, window.end, window.capacity)
        assert (other.axis, other.end, other.capacity) == described
        assert_same_bits(other.data, window.data)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert_same_bits(found.arrays[name], array)
    assert not found.logs  # they are never loaded


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype.name == expected.dtype.name and found.shape == expected.shape
    native = expected.astype(expected.dtype.newbyteorder("="))
    assert found.tobytes() == native.tobytes()


def rows_of(
    store: Store, ref: Ref | Commit, name: str, start: int = 0, stop: int | None = None
) -> dict[int, tuple[str, tuple[int, ...], bytes]]:
    """Position → dtype, shape and bytes of its row in a log; checks how the rows are delivered."""
    stop, end = ref.position if stop is None else stop, start
    found: dict[int, tuple[str, tuple[int, ...], bytes]] = {}
    for first, rows in store.log(ref, name, start, stop):
        assert end <= first and 0 < len(rows) <= 2**16
        assert len(rows) == 1 or rows.nbytes <= 2**21
        end = first + len(rows)
        found |= {first + i: described(row) for i, row in enumerate(rows)}
    assert end <= stop
    return found


def described(row: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    native = row.astype(row.dtype.newbyteorder("="))
    return row.dtype.name, row.shape, native.tobytes()


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def members(data: bytes) -> dict[str, bytes]:
    """The members of a commit's file, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def repacked(contents: Mapping[str, bytes]) -> bytes:
    """A commit's file with these members; the archive's own checksums match."""
    return b"".join(packed({name: [data] for name, data in contents.items()}, {}))


def where(data: bytes, name: str) -> int:
    """The offset of a member's content in a commit's file, in bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.getinfo(name).header_offset + header_size(name)


# The verbs that remedies begin with; any other sentence is a statement, not a remedy.
REMEDY = re.compile(
    r"(Ask|Check|End|Free|Give|Load|Open|Pass|Put|Restore|See|Try|Use)\b[^.]*(\.[^ ][^.]*)*\.\Z"
)


def assert_helpful(error: StoreError) -> None:
    """The message begins with a path, existing or called missing, and ends with a remedy."""
    text = str(error)
    assert text.startswith("/"), text
    ends = [match.start() for match in re.finditer(": ", text)]
    absent = re.search("missing|no session|no branch|No such file|Not a directory", text)
    # A file that could not be created does not exist, but its folder does.
    made = not isinstance(error, Corrupt)
    named = [os.path.dirname(text[:end]) if made else text[:end] for end in ends]
    assert absent or any(map(os.path.lexists, named)), text
    assert REMEDY.search(text[ends[0] :].rpartition(". ")[2]), text


def digest(snapshot: Snapshot) -> dict[str, str]:
    """The sha256, dtype and shape of every array of a snapshot, and the extent of its windows."""
    named = {name: (window.data, window) for name, window in snapshot.windows.items()}
    arrays = {name: (array, None) for name, array in snapshot.arrays.items()}
    return {
        name: f"{array.dtype} {array.shape} {sha256(array.tobytes()).hexdigest()}"
        + (f" {window.axis} {window.end} {window.capacity}" if window else "")
        for name, (array, window) in {**named, **arrays, "tokens": (snapshot.tokens, None)}.items()
    }
