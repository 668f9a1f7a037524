"""Pins: names for commits whose state is to be kept, whatever else is let go."""

from memory_store.backend import Backend, Taken
from memory_store.errors import NotFound, StoreError
from memory_store.format.json import Fields, now, parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema, read_address
from memory_store.format.names import BRANCH, PINS, pin_key
from memory_store.types import Commit


def all_pins(backend: Backend) -> dict[str, Commit]:
    """Every pin and the commit that it names, sorted.

    Raises:
        Corrupt: one is damaged.
    """
    names = [name.removesuffix(".json") for name in backend.files(PINS) if name.endswith(".json")]
    return {name: _read(backend, name) for name in sorted(filter(BRANCH.fullmatch, names))}


def add_pin(backend: Backend, name: str, commit: Commit) -> None:
    """Pin a commit.

    Raises:
        ValueError: not a name for a pin.
        StoreError: the name is taken by another commit.
    """
    document = {
        "schema": SCHEMA,
        "pin": name,
        "commit": commit.name,
        "id": commit.id,
        "position": commit.position,
        "created": now(),
    }
    try:
        backend.create(pin_key(name), sealed(document))
    except Taken:
        if _read(backend, name) != commit:
            raise StoreError(
                f"{backend.name(pin_key(name))}: pins another commit. Unpin it, or take another "
                "name."
            ) from None


def remove_pin(backend: Backend, name: str) -> None:
    """Remove a pin; the commit stays until garbage is collected.

    Raises:
        NotFound: there is none of that name.
    """
    key = pin_key(name)
    if not backend.exists(key):
        raise NotFound(f"{backend.name(key)}: no such pin. See pins().")
    backend.discard(key)


def _read(backend: Backend, name: str) -> Commit:
    path = backend.name(pin_key(name))
    document = parse(backend.read(pin_key(name)), path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    if fields.text("pin", BRANCH) != name:
        raise fields.corrupt("pin", "is of another name")
    return read_address(fields)
