"""`session.json`: what a session is, written once."""

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
    """A session's id and what its creator wrote about it."""

    session: str
    created: float
    attributes: Mapping[str, Any]
    fingerprints: Mapping[str, str]


def read_header(backend: Backend) -> Header:
    """The header of the session that a backend keeps.

    Raises:
        NotFound: no session there.
        Corrupt: damaged.
        UnsupportedSchema: of a later version.
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
    """Begin a new session: only its header makes it one.

    Raises:
        StoreError: something else is there already, or the medium refuses.
        ValueError: attributes that are no JSON, fingerprints that are no text.
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
    """`session.json`."""
    return sealed({"schema": SCHEMA, **vars(header)})


def checked_fingerprints(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints as they are recorded.

    Raises:
        ValueError: not a mapping from text to text.
    """
    if not all(type(item) is str for pair in fingerprints.items() for item in pair):
        raise ValueError(f"fingerprints must map text to text, not {dict(fingerprints)!r}")
    return dict(fingerprints)
