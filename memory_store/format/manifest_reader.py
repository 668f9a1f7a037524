"""Reading a commit's attributes: checked against its address, and for sense, before anything else.

A hostile store may claim anything; nothing is allocated, opened or unpickled on its word.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from memory_store.backend import Backend
from memory_store.errors import Corrupt, UnsupportedSchema
from memory_store.format.json import Fields, canonical, parse, sha256
from memory_store.format.manifest import MAX_WINDOW, SCHEMA, Held, Manifest, Slots, Source
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
from memory_store.format.zarr import FILL, ITEMSIZE, MAX_ARRAY, MAX_NDIM, ArraySpec, chunk_count
from memory_store.types import Commit

SUPPORTED = (1, 2)
DTYPE = re.compile("|".join(FILL))


def read_address(fields: Fields) -> Commit:
    """The commit that a file names.

    Raises:
        Corrupt: not an address.
    """
    name = fields.text("commit", COMMIT)
    position = fields.integer("position", high=MAX_NUMBER)
    if int(name[:12]) != position:
        raise fields.corrupt("commit", "is named after another position")
    return Commit(name, fields.text("id", ID), position)


def read_manifest(backend: Backend, commit: Commit, session: str | None) -> Manifest:
    """The attributes of a commit, or of what is left of it, checked against its address.

    Args:
        session: that it belongs to; None if nobody knows.

    Raises:
        Corrupt: missing, damaged, or another commit than `commit`.
        UnsupportedSchema: written by a later version.
    """
    key, left, packed, size = document_key(commit.name), "all", is_packed(commit.name), 0
    try:
        data, size = read_document(backend, key) if packed else (backend.read(key), 0)
    except Corrupt:
        if backend.exists(record_key(commit.name)):
            key, left = record_key(commit.name), "log"
        elif backend.exists(past_key(commit.name)):
            key, left = past_key(commit.name), "record"
        else:
            raise
        in_archive = packed and left == "log"
        data = read_document(backend, key, RECORD)[0] if in_archive else backend.read(key)
    path = backend.name(key)
    document = parse(data, path)
    attributes = Fields(document.get("attributes"), path, "attributes")
    try:
        found = sha256(canonical(attributes.value))
    except (ValueError, RecursionError) as error:
        raise attributes.corrupt("", f"cannot be: {error}") from error
    if found != commit.id:
        raise Corrupt(
            f"{path}: not the commit that was published: its id is {found[:12]}…, "
            f"not {commit.id[:12]}…. Restore the file from a copy."
        )
    check_schema(attributes.value.get("schema"), path)
    manifest = from_attributes(attributes)
    if packed != (manifest.schema > 1):
        raise Corrupt(f"{path}: of another schema than its name. Restore the file from a copy.")
    if manifest.position != commit.position or session not in (None, manifest.session):
        raise Corrupt(f"{path}: of another session or position. Restore the file from a copy.")
    if left != "all":
        data = manifest.data  # what was there, for those that need to know where
    elif manifest.document != document:
        raise Corrupt(
            f"{path}: its Zarr metadata does not fit its attributes. Restore the file from a copy."
        )
    arrays = manifest.arrays
    if packed:
        arrays, end = placed(arrays, len(data))
        if left == "all" and end > size:  # a shape must not promise what is not there
            raise Corrupt(
                f"{path}: has {size} bytes where more than {end} were written. "
                "Restore the file from a copy."
            )
    return replace(manifest, arrays=arrays, left=left)


def check_schema(found: Any, path: object) -> None:
    """Refuse what this version cannot read.

    Raises:
        UnsupportedSchema: says what was found and what is supported.
    """
    if type(found) is not int or found not in SUPPORTED:
        raise UnsupportedSchema(
            f"{path}: schema {found!r} is not supported; this version reads "
            f"{', '.join(map(str, SUPPORTED))}. Open it with the version that wrote it, or a later."
        )


def from_attributes(fields: Fields) -> Manifest:
    """The manifest that attributes describe; nothing is allocated by what they claim.

    Raises:
        Corrupt: they contradict themselves, or claim what cannot be.
    """
    parent, jump = fields.optional("parent"), fields.optional("jump")
    slots = dict(_slots(fields.mapping("slots")))
    manifest = Manifest(
        session=fields.text("session", SESSION),
        created=fields.seconds("created"),
        position=fields.integer("position", high=MAX_NUMBER),
        depth=fields.integer("depth"),
        parent=read_address(parent) if parent else None,
        jump=(read_address(jump), jump.integer("depth")) if jump else None,
        window=tuple(_sources(fields, slots)),
        slots=slots,
        arrays=dict(_arrays(fields.mapping("arrays"))),
        state=fields.mapping("state").value,
        fingerprints=fields.strings("fingerprints"),
        libraries=fields.strings("libraries"),
        schema=fields.integer("schema", low=1, high=SCHEMA),
    )
    _check(manifest, fields)
    return manifest


def _slots(fields: Fields) -> Iterator[tuple[str, Slots]]:
    for name, item in fields.items(ARRAY):
        shape, dtype = _shape(item)
        axis = item.integer("axis", high=max(0, len(shape) - 1))
        end, capacity = item.integer("end"), item.integer("capacity")
        if not shape or shape[axis] > min(end, capacity):
            raise item.corrupt("shape", "has more slots than there can be")
        yield name, Slots(shape, dtype, axis, end, capacity)


def _sources(fields: Fields, slots: Mapping[str, Slots]) -> Iterator[Source]:
    for item in fields.list("window", longest=MAX_WINDOW - 1):
        held, commit = {}, read_address(item)
        for name, part in item.mapping("slots").items(ARRAY):
            if name not in slots:
                raise part.corrupt("", "is part of no window")
            end = part.integer("end")
            first = part.integer("first", high=end)
            shape = Held(first, end, (), None).stored(slots[name]).shape
            _check_shape(shape, slots[name].dtype, part)
            crcs = _checksums(part, shape, slots[name].dtype)
            start = part.integer("start") if is_packed(commit.name) else None
            held[name] = Held(first, end, crcs, start)
        yield Source(commit, held)


def _arrays(fields: Fields) -> Iterator[tuple[str, ArraySpec]]:
    for name, item in fields.items(ARRAY):
        shape, dtype = _shape(item)
        crcs = _checksums(item, shape, dtype)
        yield name, ArraySpec(shape, dtype, crcs, item.text("sha256", ID))


def _checksums(fields: Fields, shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    count = chunk_count(shape, dtype)
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
        raise fields.corrupt("", f"claims the absurd shape {list(shape)}")


def _check(manifest: Manifest, fields: Fields) -> None:
    """What the values say together."""
    if (manifest.depth == 0) != (manifest.parent is None) or (
        (manifest.parent is None) != (manifest.jump is None)
    ):
        raise fields.corrupt("parent", "and depth and jump do not fit together")
    if manifest.parent and manifest.parent.position > manifest.position:
        raise fields.corrupt("parent", "has read more tokens than its child")
    if manifest.jump and manifest.jump[1] >= manifest.depth:
        raise fields.corrupt("jump", "does not lead back")
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
            raise fields.corrupt(f"slots.{name}", "does not fit its array")
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
