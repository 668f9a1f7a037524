"""`streamlm sessions` gc, pin, verify, recover, rename, export, import, copy."""

import json
from pathlib import Path
from typing import Annotated

import typer

from memory_store import Retention, places
from streamlm.cli.display import note, output
from streamlm.cli.options import Json, Name, Store, place
from streamlm.sessions.shelf import find, free_place, locate, missing_branch, place_of
from streamlm.units import size_text


def gc(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    last: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many snapshots of each branch loadable; default: all."),
    ] = None,
    thin: Annotated[
        bool,
        typer.Option("--thin", help="And about as many for each doubling of the older ones' age."),
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Drop the tokens before the oldest one kept, too.")
    ] = False,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds; younger leftovers may still be written.")
    ] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done.")
    ] = False,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Let go of old states; heads and pins stay, and all positions whose tokens are kept."""
    if last is None and (thin or forget):
        raise ValueError("--thin and --forget say what happens to all but the --last N; give it")
    kept, _ = find(store, name)
    done = kept.gc(Retention(last=last, thin=thin, log=not forget), grace=grace, dry_run=dry_run)
    if as_json:
        print(json.dumps({"name": name, "dry_run": dry_run, **done.__dict__}))
        return
    would = "would be " if dry_run else ""
    output.print(
        f"{name}: {done.kept} snapshots kept, {done.deleted} {would}let go, tokens of "
        f"{done.tokens_deleted} {would}forgotten, {done.leftovers} leftovers {would}swept; "
        f"about {size_text(done.bytes)} {would}freed"
    )


def pin(
    name: Name,
    pin_name: Annotated[str, typer.Argument(metavar="PIN", help="Name of the pin.")],
    snapshot: Annotated[
        int | None, typer.Option(help="A snapshot of `show`; default: where the branch stands.")
    ] = None,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Keep a snapshot, whatever `gc` is told."""
    kept, branch = find(store, name)
    refs = kept.refs(branch)
    if not refs:
        raise missing_branch(kept, name)
    if snapshot is not None and not 0 <= snapshot < len(refs):
        raise ValueError(f"snapshot = {snapshot}; allowed: 0 to {len(refs) - 1}")
    ref = refs[-1 if snapshot is None else snapshot]
    kept.pin(ref, pin_name)
    if as_json:
        print(json.dumps({"name": name, "pin": pin_name, "position": ref.position}))
    else:
        output.print(f"{name}: {pin_name} keeps token {ref.position:,}")


def unpin(
    name: Name,
    pin_name: Annotated[str, typer.Argument(metavar="PIN", help="Name of the pin.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Remove a pin; the snapshot stays until the next `gc`."""
    kept, _ = find(store, name)
    kept.unpin(pin_name)
    if as_json:
        print(json.dumps({"name": name, "unpinned": pin_name}))
    else:
        output.print(f"{name}: {pin_name} is no pin any more")


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="To be written.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Write a session with all its history to one file, a Zip archive."""
    path = place_of(store, name)
    size = places.export(path, file)
    if as_json:
        print(json.dumps({"name": name, "file": str(file), "bytes": size}))
    else:
        output.print(f"{name} is in {file} ({size_text(size)})")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export has written.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new session.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Unpack a session that was exported, checking everything."""
    places.import_(file, free_place(store, name))
    _tell_new(store, name, as_json)


def rename(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Give a session another name. Nobody may be writing to it."""
    places.rename(place_of(store, name), free_place(store, new))
    _tell_new(store, new, as_json)


def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new session.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="Where it goes; default: beside the other."),
    ] = None,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Copy a session with all its history: into another folder, to object storage, or from it."""
    there = store if to is None else place(to)
    places.copy(place_of(store, name), free_place(there, new))
    _tell_new(there, new, as_json)


def _tell_new(store: str, name: str, as_json: bool) -> None:
    kept, _ = find(store, name)
    positions = {branch: head.position for branch in kept.branches() if (head := kept.head(branch))}
    if as_json:
        print(json.dumps({"name": name, "branches": positions}))
        return
    standing = ", ".join(f"{branch} at token {at:,}" for branch, at in positions.items())
    output.print(f"{name}: {standing or 'nothing saved yet'}")


def verify(name: Name, store: Store = "sessions", as_json: Json = False) -> None:
    """Read all that a session keeps, and check every checksum."""
    kept, _ = find(store, name)
    found = kept.verify()
    if as_json:
        print(json.dumps({"name": name, **found.__dict__}))
    else:
        output.print(
            f"{name}: {found.commits} commits and {found.refs} refs are as they were written "
            f"({size_text(found.bytes)})"
        )


def recover(name: Name, store: Store = "sessions", as_json: Json = False) -> None:
    """Go back to the newest state that is sound, after damage."""
    path, _ = locate(store, name)
    mended = places.repair_header(path) if places.occupied(path) else None
    kept, branch = find(store, name)
    found = kept.recover(branch)
    damage = [*([mended] if mended else []), *found.damage]
    if as_json:
        print(json.dumps({"name": name, "position": found.head.position, "damage": damage}))
        return
    for text in damage:
        note(text, word="lost: ", style="bold red")
    state = "is back at" if damage else "is sound; it is at"
    output.print(f"{name} {state} token {found.head.position:,}")
