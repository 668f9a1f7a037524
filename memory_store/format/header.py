"""`session.json`: the id, attributes and fingerprints of a session, written once."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory_store.backend import MAX_DOCUMENT, Backend
from memory_store.errors import NotFound, os_errors
from memory_store.format.json import Fields, now, parse, plain, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema
from memory_store.format.names import SESSION, SESSION_FILE


@dataclass(frozen=True)
class Header:
    """The content of `session.json`."""

    session: str
    created: float
    attributes: Mapping[str, Any]
    fingerprints: Mapping[str, str]


def read_header(backend: Backend) -> Header:
    """The header of the session on a backend.

    Raises:
        NotFound: there is no session.
        Corrupt: the header is damaged.
        UnsupportedSchema: a later version wrote it.
    """
    if not backend.exists(SESSION_FILE):
        raise NotFound(f"{backend.name()}: no session here. Check the path, or create one.")
    path = backend.name(SESSION_FILE)
    document = parse(backend.read(SESSION_FILE), path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    return Header(
        session=fields.text("session", SESSION),
        created=fields.seconds("created"),
        attributes=fields.mapping("attributes").value,
        fingerprints=fields.strings("fingerprints"),
    )


def create_header(
    backend: Backend,
    *,
    attributes: Mapping[str, Any] | None,
    fingerprints: Mapping[str, str] | None,
) -> Header:
    """Create a session by writing its header.

    Raises:
        StoreError: the place is not empty, or the medium refuses.
        ValueError: the attributes are not JSON, the fingerprints are not strings, or both together
            exceed `MAX_DOCUMENT`.
    """
    with os_errors("creating the session", backend.name()):
        header = Header(
            session=uuid.uuid4().hex,
            created=now(),
            attributes=plain(attributes or {}, "attributes"),
            fingerprints=checked_fingerprints(fingerprints or {}),
        )
        data = sealed_header(header)
        if len(data) > MAX_DOCUMENT:
            raise ValueError(
                f"attributes and fingerprints take {len(data)} bytes; allowed: at most "
                f"{MAX_DOCUMENT}"
            )
        backend.begin(data)
    return header


def sealed_header(header: Header) -> bytes:
    """The bytes of `session.json`."""
    return sealed({"schema": SCHEMA, **vars(header)})


def checked_fingerprints(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints as a dict.

    Raises:
        ValueError: not a mapping from strings to strings.
    """
    if not all(type(item) is str for pair in fingerprints.items() for item in pair):
        raise ValueError(f"fingerprints = {dict(fingerprints)!r}; allowed: strings by strings")
    return dict(fingerprints)
