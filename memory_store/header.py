"""`session.json`: what a session is, written once."""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_store.canonical import parse, plain, sealed, unsealed
from memory_store.errors import NotFound, StoreError, from_os
from memory_store.fields import Fields, now
from memory_store.files import MAX_DOCUMENT, read_document, sync_folder, sync_way, write_new
from memory_store.manifest import SCHEMA
from memory_store.manifest_reader import check_schema
from memory_store.names import SESSION, SESSION_FILE, commits_folder, refs_folder, temporary


@dataclass(frozen=True)
class Header:
    """A session's id and what its creator wrote about it."""

    session: str
    created: float
    attributes: Mapping[str, Any]
    fingerprints: Mapping[str, str]


def read_header(root: Path) -> Header:
    """The header of the session at `root`.

    Raises:
        NotFound: no session there.
        Corrupt: damaged.
        UnsupportedSchema: of a later version.
    """
    path = root / SESSION_FILE
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{root}: no session here. Check the path, or create one.") from None
    except OSError as error:  # there may be one, but it is not for us to see
        raise from_os(error, "reading", path) from error
    document = parse(read_document(path), path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    return Header(
        session=fields.text("session", SESSION),
        created=fields.seconds("created"),
        attributes=fields.mapping("attributes").value,
        fingerprints=fields.strings("fingerprints"),
    )


def create_header(
    root: Path, *, attributes: Mapping[str, Any], fingerprints: Mapping[str, str], durable: bool
) -> Header:
    """Make the folders of a new session, then its header: only that makes it one.

    Raises:
        StoreError: something else is there already.
    """
    header = Header(
        session=uuid.uuid4().hex,
        created=now(),
        attributes=plain(attributes, "attributes"),
        fingerprints=checked_fingerprints(fingerprints),
    )
    data = sealed({"schema": SCHEMA, **vars(header)})
    if len(data) > MAX_DOCUMENT:
        raise ValueError(
            f"attributes and fingerprints take {len(data)} bytes; allowed: at most {MAX_DOCUMENT}"
        )
    root.mkdir(parents=True, exist_ok=True)
    _check_vacant(root)
    for folder in (refs_folder(root), commits_folder(root)):
        folder.mkdir(exist_ok=True)
    if durable:
        sync_way(root)  # a header that is seen has all around it on disk
    source = temporary(root)
    try:
        write_new(source, [data], durable=durable)
        os.rename(source, root / SESSION_FILE)
    except BaseException:
        source.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(root)
    return header


def checked_fingerprints(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints as they are recorded.

    Raises:
        ValueError: not a mapping from text to text.
    """
    if not all(type(item) is str for pair in fingerprints.items() for item in pair):
        raise ValueError(f"fingerprints must map text to text, not {dict(fingerprints)!r}")
    return dict(fingerprints)


def _check_vacant(root: Path) -> None:
    """Pass over what a creation that was cut short has left; refuse anything else."""
    for name in os.listdir(root):
        unfinished = name in ("refs", "commits") and not os.listdir(root / name)
        if not unfinished and not name.startswith(".tmp-"):
            what = "a session" if name == SESSION_FILE else repr(name)
            raise StoreError(f"{root}: holds {what} already. Open it, or give another path.")
