"""Sessions by path or URL: in a folder, or under a prefix of object storage."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree

from memory_store.backend import Backend
from memory_store.backends.directory import DirectoryBackend, Durability
from memory_store.backends.directory_draft import temporary
from memory_store.backends.files import make_folder
from memory_store.backends.object_client import is_url
from memory_store.backends.object_storage import ObjectBackend
from memory_store.errors import NotFound, StoreError, os_errors
from memory_store.format.names import REFS
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
    """Create a session in a folder, or under a prefix of object storage.

    Args:
        where: a path, or `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
        attributes: a description of the session; it never changes.
        fingerprints: of the weights, the tokenizer, …: the default of `commit`.
        durability: of a folder, see `DirectoryStore.create`; object storage is always "full".

    Raises:
        ValueError: an unsupported URL.
        StoreError: the place is not empty, or the medium refuses.
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
        ValueError: an unsupported URL.
        NotFound: there is no session.
        Corrupt: `session.json` is damaged.
        UnsupportedSchema: a later version wrote the session.
        StoreError: the medium refuses.
    """
    if is_url(where):
        return ObjectStore.open(str(where))
    return DirectoryStore.open(where, durability=durability)


def export(where: Place, path: Place) -> int:
    """Write the session at `where` to one file; see `export.export_session`."""
    return export_session(_backend(where), path)


def import_(path: Place, where: Place) -> None:
    """Create the session at `where` from an exported file; see `export.import_session`."""
    with _whole(where) as target:
        import_session(path, target)


def copy(where: Place, to: Place) -> None:
    """Copy a session with all its history; see `copying.copy_session`."""
    source = _backend(where)
    with _whole(to) as target:
        copy_session(source, target)


@contextmanager
def _whole(where: Place) -> Iterator[Backend]:
    """A backend to fill; a folder gets its name when it is complete, so a kill leaves no half.

    In object storage the session is visible while it is filled.

    Raises:
        StoreError: the place is not vacant.
    """
    target = _backend(where)
    if not isinstance(target, DirectoryBackend):
        yield target
        return
    if not target.is_vacant():
        raise StoreError(f"{target.root}: exists already. Give another name.")
    with os_errors("creating the session", target.root):
        target.root.parent.mkdir(parents=True, exist_ok=True)
        draft = DirectoryBackend(temporary(target.root.parent), "full")
        try:
            yield draft
            draft.move(target.root)
        except BaseException:
            rmtree(draft.root, ignore_errors=True)
            raise


def _backend(where: Place) -> Backend:
    return ObjectBackend.at(str(where)) if is_url(where) else DirectoryBackend(where, "full")


def rename(where: Place, to: Place) -> None:
    """Move a session that has no writer.

    A folder moves within its file system. Object storage has no rename: a session that moves from
    or to a URL is copied and then deleted.

    Raises:
        NotFound, Corrupt: the source is not a session, or it is damaged.
        Locked: a writer holds one of its branches.
        StoreError: the target exists, or the medium refuses.
    """
    store = open_store(where)
    with ExitStack() as stack, os_errors("renaming", where):
        for branch in store.branches():
            stack.enter_context(store.writer(branch))
        if is_url(where) or is_url(to):
            copy(where, to)
            _backend(where).delete()
        else:
            DirectoryBackend(where, "full").move(Path(to))


def repair_header(where: Place) -> str | None:
    """Rewrite a damaged or missing `session.json`; see `recovery.recover_header`.

    A missing folder of refs is created, for `Store.recover` to fill.

    Returns:
        A description of the damage, or None if there was none.
    """
    backend = _backend(where)
    if isinstance(backend, DirectoryBackend):
        with os_errors("repairing", backend.root):
            make_folder(backend.root / REFS)
    return recover_header(backend)


def occupied(where: Place) -> bool:
    """Whether anything is at a path, or a prefix of object storage holds a session.

    A vacant folder is free: one that is empty, or holds only what an interrupted creation left.
    """
    if not is_url(where):
        return not DirectoryBackend(where, "full").is_vacant()
    try:
        ObjectStore.open(str(where))
    except NotFound:
        return False
    return True


def clear(where: Place) -> bool:
    """Remove a vacant folder, which no session is in; False if there is none.

    Raises:
        StoreError: the medium refuses.
    """
    if not is_vacant_folder(where):
        return False
    DirectoryBackend(where, "full").clear()
    return True


def is_vacant_folder(where: Place) -> bool:
    """Whether a path is a folder without a session in it; see `occupied`."""
    return not is_url(where) and os.path.lexists(where) and not occupied(where)


def session_names(where: Place) -> list[str]:
    """The names of the sessions `<name>.zarr` in a folder or under a prefix, sorted.

    Raises:
        ValueError: an unsupported URL.
        StoreError: the medium refuses.
    """
    if is_url(where):
        names = ObjectBackend.at(str(where)).folders("")
    else:
        with os_errors("listing", where):
            names = [path.name for path in Path(where).glob(f"*{SUFFIX}") if occupied(path)]
    return [name.removesuffix(SUFFIX) for name in sorted(names) if name.endswith(SUFFIX)]


def named(where: Place, name: str) -> str:
    """The path or URL of the session `name` in a folder or under a prefix."""
    if is_url(where):
        return f"{str(where).rstrip('/')}/{name}{SUFFIX}"
    return os.path.join(where, f"{name}{SUFFIX}")
