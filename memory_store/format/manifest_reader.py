"""Reading manifests: checked against the commit's id, and for consistency, before any use.

A hostile store may claim anything. Nothing is allocated, opened or unpickled because a manifest
claims that it exists.
"""

import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from memory_store.backend import Backend
from memory_store.errors import Corrupt, UnsupportedSchema
from memory_store.format.json import Fields, canonical, parse, sha256
from memory_store.format.manifest import (
    MAX_WINDOW,
    SCHEMA_WITH_LOGS,
    Manifest,
    Source,
    StoredSlots,
    WindowSpec,
)
from memory_store.format.names import (
    ARRAY,
    COMMIT,
    ID,
    MAX_NUMBER,
    RECORD,
    SESSION,
    TOKENS,
    document_key,
    is_packed,
    past_key,
    record_key,
)
from memory_store.format.packing import placed, read_document
from memory_store.format.zarr import (
    FILL,
    ITEMSIZE,
    MAX_ARRAY,
    MAX_CHUNK,
    MAX_LOG_CHUNK,
    MAX_NDIM,
    ArraySpec,
    chunk_count,
)
from memory_store.types import Commit

SUPPORTED = (1, 2, SCHEMA_WITH_LOGS)  # of commits
SUPPORTED_FILES = (1, 2)  # of all other files
DTYPE = re.compile("|".join(FILL))


def read_address(fields: Fields) -> Commit:
    """The address of a commit in a document.

    Raises:
        Corrupt: not a valid address.
    """
    name = fields.text("commit", COMMIT)
    position = fields.integer("position", high=MAX_NUMBER)
    if int(name[:12]) != position:
        raise fields.corrupt("commit", "has a name with another position")
    return Commit(name, fields.text("id", ID), position)


def read_manifest(backend: Backend, commit: Commit, session: str | None) -> Manifest:
    """The manifest of a commit, or of a deleted snapshot's record, checked against its address.

    Args:
        backend: the medium.
        commit: its address.
        session: the id of its session; None if it is unknown.

    Raises:
        Corrupt: the manifest is missing, damaged, or that of another commit.
        UnsupportedSchema: a later version wrote it.
    """
    key, retained, packed, size = document_key(commit.name), "all", is_packed(commit.name), 0
    try:
        data, size = read_document(backend, key) if packed else (backend.read(key), 0)
    except Corrupt:
        if backend.exists(record_key(commit.name)):
            key, retained = record_key(commit.name), "log"
        elif backend.exists(past_key(commit.name)):
            key, retained = past_key(commit.name), "record"
        else:
            raise
        in_archive = packed and retained == "log"
        data = read_document(backend, key, RECORD)[0] if in_archive else backend.read(key)
    path = backend.name(key)
    document = parse(data, path)
    attributes = Fields(document.get("attributes"), path, "attributes")
    digest = _digest(attributes)
    if digest != commit.id:
        raise Corrupt(
            f"{path}: not the commit that was published: its id is {digest[:12]}…, "
            f"not {commit.id[:12]}…. Restore the file from a copy."
        )
    check_schema(attributes.value.get("schema"), path, SUPPORTED)
    manifest = from_attributes(attributes)
    if packed != (manifest.schema > 1):
        raise Corrupt(f"{path}: its schema does not match its name. Restore the file from a copy.")
    if manifest.position != commit.position or session not in (None, manifest.session):
        raise Corrupt(
            f"{path}: belongs to another session or position. Restore the file from a copy."
        )
    if retained != "all":
        data = manifest.data  # of the deleted commit, for the offsets of its arrays
    elif manifest.document != document:
        raise Corrupt(
            f"{path}: its Zarr metadata does not match its attributes. Restore the file from a "
            "copy."
        )
    arrays = manifest.arrays
    if packed:
        arrays, end = placed(arrays, len(data))
        if retained == "all" and end > size:  # a shape may claim more than the file holds
            raise Corrupt(
                f"{path}: has {size} bytes where more than {end} were written. "
                "Restore the file from a copy."
            )
    return replace(manifest, arrays=arrays, retained=retained)


def own_address(backend: Backend, name: str) -> Commit:
    """The address of a commit that no ref names, according to its own manifest.

    Raises:
        Corrupt: there is no complete manifest.
    """
    key = document_key(name)
    data = read_document(backend, key)[0] if is_packed(name) else backend.read(key)
    path = backend.name(key)
    attributes = Fields(parse(data, path).get("attributes"), path, "attributes")
    return Commit(name, _digest(attributes), int(name[:12]))


def _digest(attributes: Fields) -> str:
    try:
        return sha256(canonical(attributes.value))
    except (ValueError, RecursionError) as error:
        raise attributes.corrupt("", f"are invalid: {error}") from error


def check_schema(schema: Any, path: object, supported: tuple[int, ...] = SUPPORTED_FILES) -> None:
    """Refuse a schema that this version cannot read.

    Raises:
        UnsupportedSchema: states the schema and the supported ones.
    """
    if type(schema) is not int or schema not in supported:
        raise UnsupportedSchema(
            f"{path}: schema {schema!r} is not supported; this version reads "
            f"{', '.join(map(str, supported))}. Open it with the version that wrote it, or later."
        )


def from_attributes(fields: Fields) -> Manifest:
    """The manifest of untrusted attributes.

    Raises:
        Corrupt: they are invalid or inconsistent.
    """
    parent, jump = fields.optional("parent"), fields.optional("jump")
    slots = dict(_slots(fields.mapping("slots")))
    schema = fields.integer("schema", low=1, high=SCHEMA_WITH_LOGS)
    items = fields.mapping("logs").items(ARRAY) if schema == SCHEMA_WITH_LOGS else ()
    logs = {name: item.integer("start", high=MAX_NUMBER) for name, item in items}
    manifest = Manifest(
        session=fields.text("session", SESSION),
        created=fields.seconds("created"),
        position=fields.integer("position", high=MAX_NUMBER),
        depth=fields.integer("depth"),
        parent=read_address(parent) if parent else None,
        jump=(read_address(jump), jump.integer("depth")) if jump else None,
        window=tuple(_sources(fields, slots)),
        slots=slots,
        arrays=dict(_arrays(fields.mapping("arrays"), logs)),
        state=fields.mapping("state").value,
        fingerprints=fields.strings("fingerprints"),
        libraries=fields.strings("libraries"),
        schema=schema,
        logs=logs,
    )
    _check(manifest, fields)
    return manifest


def _slots(fields: Fields) -> Iterator[tuple[str, WindowSpec]]:
    for name, item in fields.items(ARRAY):
        shape, dtype = _shape(item)
        axis = item.integer("axis", high=max(0, len(shape) - 1))
        end, capacity = item.integer("end"), item.integer("capacity")
        if not shape or shape[axis] > min(end, capacity):
            raise item.corrupt("shape", "has more slots than its end or its capacity")
        yield name, WindowSpec(shape, dtype, axis, end, capacity)


def _sources(fields: Fields, slots: Mapping[str, WindowSpec]) -> Iterator[Source]:
    for item in fields.list("window", longest=MAX_WINDOW - 1):
        held, commit = {}, read_address(item)
        for name, part in item.mapping("slots").items(ARRAY):
            if name not in slots:
                raise part.corrupt("", "belongs to no window")
            end = part.integer("end")
            first = part.integer("first", high=end)
            shape = StoredSlots(first, end, (), None).as_array(slots[name]).shape
            _check_shape(shape, slots[name].dtype, part)
            crcs = _checksums(part, shape, slots[name].dtype)
            start = part.integer("start") if is_packed(commit.name) else None
            held[name] = StoredSlots(first, end, crcs, start)
        yield Source(commit, held)


def _arrays(fields: Fields, logs: Container[str]) -> Iterator[tuple[str, ArraySpec]]:
    for name, item in fields.items(ARRAY):
        shape, dtype = _shape(item)
        limit = MAX_LOG_CHUNK if name in logs else MAX_CHUNK
        crcs = _checksums(item, shape, dtype, limit)
        yield name, ArraySpec(shape, dtype, crcs, item.text("sha256", ID), limit=limit)


def _checksums(
    fields: Fields, shape: tuple[int, ...], dtype: str, limit: int = MAX_CHUNK
) -> tuple[int, ...]:
    count = chunk_count(shape, dtype, limit)
    crcs = fields.integers("crc32c", longest=count, high=2**32 - 1)
    if len(crcs) != count:
        raise fields.corrupt("crc32c", f"should have {count} values")
    return crcs


def _shape(fields: Fields) -> tuple[tuple[int, ...], str]:
    shape = fields.integers("shape", longest=MAX_NDIM, high=MAX_ARRAY)
    dtype = fields.text("dtype", DTYPE)
    _check_shape(shape, dtype, fields)
    return shape, dtype


def _check_shape(shape: tuple[int, ...], dtype: str, fields: Fields) -> None:
    if math.prod(max(1, length) for length in shape) * ITEMSIZE[dtype] > MAX_ARRAY:
        raise fields.corrupt("", f"has the implausible shape {list(shape)}")


def _check(manifest: Manifest, fields: Fields) -> None:
    """Check the values against each other."""
    if (manifest.depth == 0) != (manifest.parent is None) or (
        (manifest.parent is None) != (manifest.jump is None)
    ):
        raise fields.corrupt("parent", "is inconsistent with depth and jump")
    if manifest.parent and manifest.parent.position > manifest.position:
        raise fields.corrupt("parent", "has read more tokens than its child")
    if manifest.jump and manifest.jump[1] >= manifest.depth:
        raise fields.corrupt("jump", "is not an ancestor")
    for name, slots in manifest.slots.items():
        array = manifest.arrays.get(name)
        axis = slots.axis
        if (
            array is None
            or array.dtype != slots.dtype
            or len(array.shape) != len(slots.shape)
            or array.shape[axis] > slots.shape[axis]
            or array.shape[:axis] + array.shape[axis + 1 :]
            != slots.shape[:axis] + slots.shape[axis + 1 :]
        ):
            raise fields.corrupt(f"slots.{name}", "does not match its array")
    if manifest.schema == SCHEMA_WITH_LOGS and not manifest.logs:
        raise fields.corrupt("logs", "should not be empty")
    for name, start in manifest.logs.items():
        array = manifest.arrays.get(name)
        if (
            array is None
            or name in (TOKENS, *manifest.slots)
            or not array.shape
            or 0 in array.shape
            or start + array.shape[0] > manifest.position
        ):
            raise fields.corrupt(f"logs.{name}", "does not match its array or the position")
    tokens = manifest.arrays.get(TOKENS)
    begin = manifest.parent.position if manifest.parent else 0
    if (
        tokens is None
        or tokens.dtype != "int32"
        or len(tokens.shape) != 1
        or TOKENS in manifest.slots
        or tokens.shape[0] > manifest.position - begin
        or (manifest.parent and tokens.shape[0] != manifest.position - begin)
    ):
        raise fields.corrupt(f"arrays.{TOKENS}", "does not lead from the parent to the position")
