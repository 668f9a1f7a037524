"""Stores by path or URL: a folder, or a prefix in object storage."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from memory_store.backend import Backend
from memory_store.backends.directory import Directory, Durability
from memory_store.backends.object_client import is_url
from memory_store.backends.object_storage import Objects
from memory_store.errors import NotFound, os_errors
from memory_store.media import DirectoryStore, ObjectStore
from memory_store.store import Store
from memory_store.types import JSON
from memory_store.upkeep.copying import copy_session
from memory_store.upkeep.export import export_session, import_session
from memory_store.upkeep.recovery import recover_header

SUFFIX = ".zarr"
Place = str | os.PathLike[str]


def create_store(
    where: Place,
    *,
    attributes: Mapping[str, JSON] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    durability: Durability = "full",
) -> Store:
    """Begin a session in a folder, or under a prefix of object storage.

    Args:
        where: a path, or `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
        attributes: what the session is; never changes.
        fingerprints: of the weights, the tokenizer, …: recorded with commits that name none.
        durability: of a folder, see `DirectoryStore.create`; object storage is always "full".

    Raises:
        ValueError: a URL that is none of these.
        StoreError: something is there already, or the medium refuses.
    """
    if is_url(where):
        return ObjectStore.create(str(where), attributes=attributes, fingerprints=fingerprints)
    return DirectoryStore.create(
        where, attributes=attributes, fingerprints=fingerprints, durability=durability
    )


def open_store(where: Place, *, durability: Durability = "full") -> Store:
    """Open the session in a folder, or under a prefix of object storage.

    Args:
        where: see `create_store`.
        durability: see `create_store`.

    Raises:
        ValueError: a URL that is none of those allowed.
        NotFound: no session there.
        Corrupt: its description is damaged.
        UnsupportedSchema: a later version wrote it.
        StoreError: the medium refuses.
    """
    if is_url(where):
        return ObjectStore.open(str(where))
    return DirectoryStore.open(where, durability=durability)


def export(where: Place, path: Place) -> int:
    """Write the session at `where` to one file; see `export.export_session`."""
    return export_session(_backend(where), path)


def import_(path: Place, where: Place) -> None:
    """Unpack a file of `export` at `where`; see `export.import_session`."""
    import_session(path, _backend(where))


def copy(where: Place, to: Place) -> None:
    """Copy a session with all its history; see `copying.copy_session`."""
    copy_session(_backend(where), _backend(to))


def _backend(where: Place) -> Backend:
    return Objects.at(str(where)) if is_url(where) else Directory(where, "full")


def rename(where: Place, to: Place) -> None:
    """Give a session another place beside it; nobody may be writing to it.

    In object storage, which renames nothing, it is copied, and then deleted.

    Raises:
        NotFound, Corrupt: the source is no session, or damaged.
        Locked: a writer holds one of its branches.
        StoreError: the target holds something, or the medium refuses.
    """
    store = open_store(where)
    with ExitStack() as stack, os_errors("renaming", where):
        for branch in store.branches():
            stack.enter_context(store.writer(branch))
        if is_url(where) or is_url(to):
            copy(where, to)
            _backend(where).delete()
        else:
            Directory(where, "full").move(Path(to))


def mend_header(where: Place) -> str | None:
    """Write a session's description anew if it is damaged or gone; see `recovery.recover_header`.

    Returns:
        What was wrong, None if nothing was.
    """
    return recover_header(_backend(where))


def occupied(where: Place) -> bool:
    """Whether there is something where a session would begin: a folder, or a session's prefix."""
    if not is_url(where):
        return os.path.exists(where)
    try:
        ObjectStore.open(str(where))
    except NotFound:
        return False
    return True


def session_names(where: Place) -> list[str]:
    """The names of the sessions `<name>.zarr` side by side in a folder or prefix, sorted.

    Raises:
        ValueError: a URL that is none of those allowed.
        StoreError: the medium refuses.
    """
    if is_url(where):
        names = Objects.at(str(where)).folders("")
    else:
        with os_errors("listing", where):
            names = [path.name for path in Path(where).glob(f"*{SUFFIX}")]
    return [name.removesuffix(SUFFIX) for name in sorted(names) if name.endswith(SUFFIX)]


def named(where: Place, name: str) -> str:
    """Where the session `name` of a folder or prefix lies."""
    if is_url(where):
        return f"{str(where).rstrip('/')}/{name}{SUFFIX}"
    return os.path.join(where, f"{name}{SUFFIX}")
