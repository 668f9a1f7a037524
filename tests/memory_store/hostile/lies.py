"""Forged sessions with matching ids and checksums, and a limit on memory."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from memory_store import Commit, DirectoryStore, Ref
from memory_store.format.json import canonical, sealed, sha256
from memory_store.format.zarr import array_document, chunk_shape
from tests.support.stores import members, repacked

ENOUGH = 2**22  # bytes that a refusal may allocate
LIES: list[Any] = [
    *(-1, 0, 1, 2**31, 2**53 + 1, 2**63, 10**400, 1e308, -0.5, 3.0, True, None),
    *("", "..", "../../../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b", "object", "|O", "<f8"),
    *([], {}, [[]], [2**60] * 8, [-1, 1], [1] * 5000, {"a": {}}, {"..": {}}, {"/": 1}),
]


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()  # also traces numpy's memory, touched or not
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()


def newest(store: DirectoryStore) -> Ref:
    head = store.head("main")
    assert head is not None
    return head


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def with_lie(document: Any, place: tuple[Any, ...], lie: Any) -> Any:
    document = json.loads(json.dumps(document))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    if canonical(inside[place[-1]]) == canonical(lie):
        return None  # not a lie
    inside[place[-1]] = lie
    return document


def member(store: DirectoryStore, ref: Ref, name: str = "zarr.json") -> bytes:
    """A member of a commit's file, or a file of a commit folder of schema 1."""
    path = store.path / "commits" / ref.commit.name
    return (path / name).read_bytes() if path.is_dir() else members(path.read_bytes())[name]


def put(store: DirectoryStore, ref: Ref, name: str, data: bytes) -> None:
    """Replace a member of a commit; sizes, offsets and checksums of the file are adjusted."""
    path = store.path / "commits" / ref.commit.name
    if path.is_dir():
        (path / name).write_bytes(data)
    else:
        path.write_bytes(repacked({**members(path.read_bytes()), name: data}))


def publish(store: DirectoryStore, ref: Ref, attributes: dict[str, Any]) -> Commit:
    """Replace the attributes of the newest commit; its id, ref and metadata are adjusted."""
    document = json.loads(member(store, ref))
    document["attributes"] = attributes
    with suppress(ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        document["consolidated_metadata"]["metadata"] = {
            name: array_document(tuple(spec["shape"]), spec["dtype"])
            for name, spec in attributes["arrays"].items()
        }
    chunk_shape.cache_clear()  # 4.0 == 4: the cache would return the lie for the true value
    put(store, ref, "zarr.json", canonical(document))
    commit = replace(ref.commit, id=sha256(canonical(attributes)))
    path = store.path / "refs" / ref.branch / f"{ref.seq:012d}.json"
    entry = {**json.loads(path.read_text()), "id": commit.id}
    path.write_bytes(sealed({key: item for key, item in entry.items() if key != "crc32c"}))
    return commit
