"""Pins: small create-only files that protect commits from garbage collection.

Each has a copy. If the pin vanishes, the copy shows that it was set, and protects the commit.
"""

from contextlib import suppress

from memory_store.backend import AlreadyExists, Backend, missing
from memory_store.errors import Corrupt, NotFound, StoreError
from memory_store.format.json import Fields, now, parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema, read_address
from memory_store.format.names import BRANCH, PINNED, PINS, pin_key, pinned_key
from memory_store.history.reading import Commits
from memory_store.types import Commit


def pin_names(backend: Backend) -> list[str]:
    """The names of all pins, also of those whose file vanished, sorted."""
    files = {*backend.files(PINS), *backend.files(PINNED)}
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    return sorted(filter(BRANCH.fullmatch, names))


def all_pins(backend: Backend) -> dict[str, Commit]:
    """The pinned commits by the names of the pins, sorted.

    Raises:
        Corrupt: a pin is damaged.
    """
    return {name: _parsed(backend, name) for name in pin_names(backend)}


def pinned(backend: Backend, name: str) -> Commit:
    """The commit that a pin protects.

    Raises:
        ValueError: not a valid pin name.
        NotFound: no pin has that name.
        Corrupt: the pin is damaged.
    """
    if not any(map(backend.exists, (pin_key(name), pinned_key(name)))):
        raise _no_pin(backend, name)
    return _parsed(backend, name)


def _no_pin(backend: Backend, name: str) -> NotFound:
    return NotFound(f"{backend.name(pin_key(name))}: no such pin. See pins().")


def check_pins(commits: Commits) -> list[Commit]:
    """The pinned commits, which must be loadable.

    Raises:
        Corrupt: a pin or its copy vanished or is damaged, or the snapshot was deleted.
    """
    pins = all_pins(commits.backend)
    for name, commit in pins.items():
        check_pin(commits, name)
        if not commits.is_loadable(commit):
            raise _not_kept(commits.backend, name, commit)
    return list(pins.values())


def check_pin(commits: Commits, name: str) -> None:
    """Check the files of a pin; one that an early version set has no copy.

    Raises:
        Corrupt: the pin vanished or is damaged, or its copy differs.
    """
    backend = commits.backend
    key, copy = pin_key(name), pinned_key(name)
    if not backend.exists(key):
        raise missing(backend.name(key))
    _parsed(backend, name)
    if backend.exists(copy) and backend.read(copy) != backend.read(key):
        raise Corrupt(f"{backend.name(copy)}: differs from the pin. Use recover, or unpin it.")


def _not_kept(backend: Backend, name: str, commit: Commit) -> Corrupt:
    return Corrupt(
        f"{backend.name(pin_key(name))}: its snapshot at {commit.position} tokens was deleted. "
        "Restore the session from a copy."
    )


def read_pin(backend: Backend, name: str) -> bytes:
    """The bytes of a pin, or of its copy if the pin vanished."""
    key = pin_key(name)
    return backend.read(key if backend.exists(key) else pinned_key(name))


def add_pin(backend: Backend, name: str, commit: Commit) -> None:
    """Pin a commit.

    Raises:
        ValueError: not a valid pin name.
        StoreError: the name pins another commit.
    """
    document = {
        "schema": SCHEMA,
        "pin": name,
        "commit": commit.name,
        "id": commit.id,
        "position": commit.position,
        "created": now(),
    }
    data = sealed(document)
    try:
        if backend.exists(pinned_key(name)):
            raise AlreadyExists
        backend.create(pin_key(name), data)
    except AlreadyExists:
        if _parsed(backend, name) != commit:
            raise StoreError(
                f"{backend.name(pin_key(name))}: pins another commit. Unpin it, or use another "
                "name."
            ) from None
        data = read_pin(backend, name)
    restore_pin(backend, name, data)


def restore_pin(backend: Backend, name: str, data: bytes) -> None:
    """Create the files of a pin that are missing."""
    for key in (pin_key(name), pinned_key(name)):
        with suppress(AlreadyExists):
            backend.create(key, data)


def remove_pin(backend: Backend, name: str) -> None:
    """Remove a pin; the commit stays until the next garbage collection.

    Raises:
        NotFound: no pin has that name.
    """
    keys = pinned_key(name), pin_key(name)  # the copy first: alone, it is evidence of a loss
    if not any(map(backend.exists, keys)):
        raise _no_pin(backend, name)
    for key in keys:
        backend.discard(key)


def _parsed(backend: Backend, name: str) -> Commit:
    path = backend.name(pin_key(name))
    document = parse(read_pin(backend, name), path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    if fields.text("pin", BRANCH) != name:
        raise fields.corrupt("pin", "is another name")
    return read_address(fields)


def recover_pins(commits: Commits) -> tuple[list[str], list[str], list[str]]:
    """Restore vanished and damaged pins from their copies.

    Returns:
        Names of files that are damaged beyond repair, to be set aside; messages about damage; and
        messages about what was restored.
    """
    backend = commits.backend
    broken: list[str] = []
    damage: list[str] = []
    found: list[str] = []
    for name in pin_names(backend):
        try:
            check_pin(commits, name)
        except StoreError as error:
            damage.append(str(error))
            good = _intact_copy(backend, name)
            if good is None:
                broken += [key for key in (pin_key(name), pinned_key(name)) if backend.exists(key)]
                continue
            for key in (pin_key(name), pinned_key(name)):
                backend.discard(key)
            restore_pin(backend, name, good)
            found.append(f"{backend.name(pin_key(name))}: restored from its copy.")
        commit = _parsed(backend, name)
        try:
            kept = commits.is_loadable(commit)
        except StoreError as error:
            damage.append(str(error))
        else:
            if not kept:
                damage.append(str(_not_kept(backend, name, commit)))
    return broken, damage, found


def _intact_copy(backend: Backend, name: str) -> bytes | None:
    """The bytes of the pin or of its copy, whichever is intact."""
    for key in (pin_key(name), pinned_key(name)):
        with suppress(StoreError):
            data, path = backend.read(key), backend.name(key)
            document = parse(data, path)
            check_schema(document.get("schema"), path)
            fields = Fields(unsealed(document, path), path)
            read_address(fields)
            if fields.value.get("pin") == name:
                return data
    return None
