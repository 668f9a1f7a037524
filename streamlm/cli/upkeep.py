"""`streamlm sessions`: gc, pin, unpin, export, import, rename, copy, verify, recover."""

import json
from pathlib import Path
from typing import Annotated

import typer

from memory_store import NotFound, Retention, places
from streamlm.cli.display import note, output
from streamlm.cli.options import Json, Name, Store, check_store
from streamlm.sessions.shelf import (
    find,
    free_place,
    full_path,
    locate,
    missing_branch,
    place_of,
)
from streamlm.units import size_text


def gc(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    last: Annotated[
        int | None,
        typer.Option(min=1, help="Newest snapshots to keep per branch; default: all."),
    ] = None,
    thin: Annotated[
        bool,
        typer.Option("--thin", help="Also keep about as many per doubling of the older ones' age."),
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Also delete the tokens before the oldest kept snapshot."),
    ] = False,
    grace: Annotated[
        float, typer.Option(min=0, help="Keep leftovers younger than this many seconds.")
    ] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be deleted.")
    ] = False,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Delete old snapshots.

    Heads and pins are kept. Positions whose tokens are kept can still be rewound to.
    """
    if last is None and (thin or forget):
        raise ValueError(
            "--thin and --forget apply to all but the --last N snapshots; allowed: with --last"
        )
    opened, _ = find(store, name)
    done = opened.gc(Retention(last=last, thin=thin, log=not forget), grace=grace, dry_run=dry_run)
    if as_json:
        print(json.dumps({"name": name, "dry_run": dry_run, **done.__dict__}))
        return
    would = "would be " if dry_run else ""
    output.print(
        f"{name}: {done.kept} snapshots kept, {done.deleted} {would}deleted, the tokens of "
        f"{done.tokens_deleted} {would}deleted, {done.leftovers} leftovers {would}removed; "
        f"about {size_text(done.bytes)} {would}freed"
    )


def pin(
    name: Name,
    pin_name: Annotated[str, typer.Argument(metavar="PIN", help="Name of the pin.")],
    snapshot: Annotated[
        int | None, typer.Option(help="Number of a snapshot; default: the newest.")
    ] = None,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Protect a snapshot from `gc`."""
    opened, branch = find(store, name)
    refs = opened.refs(branch)
    if not refs:
        raise missing_branch(opened, name)
    if snapshot is not None and not 0 <= snapshot < len(refs):
        raise ValueError(f"snapshot = {snapshot}; allowed: 0 to {len(refs) - 1}")
    ref = refs[-1 if snapshot is None else snapshot]
    opened.pin(ref, pin_name)
    if as_json:
        print(json.dumps({"name": name, "pin": pin_name, "position": ref.position}))
    else:
        output.print(f"{name}: pinned token {ref.position:,} as {pin_name}")


def unpin(
    name: Name,
    pin_name: Annotated[str, typer.Argument(metavar="PIN", help="Name of the pin.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Remove a pin. The snapshot remains until the next `gc`."""
    opened, _ = find(store, name)
    opened.unpin(pin_name)
    if as_json:
        print(json.dumps({"name": name, "unpinned": pin_name}))
    else:
        output.print(f"{name}: removed pin {pin_name}")


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", dir_okay=False, help="The file to write.")
    ],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Export a session with its history to a Zip file."""
    path = place_of(store, name)
    size = places.export(path, file)
    if as_json:
        print(json.dumps({"name": name, "file": str(file), "bytes": size}))
    else:
        output.print(f"{name}: exported to {file} ({size_text(size)})")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported session.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new session.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Import an exported session, and verify it."""
    places.import_(file, free_place(store, name))
    _report(store, name, as_json)


def rename(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Rename a session. No process may be writing to it."""
    places.rename(place_of(store, name), free_place(store, new))
    _report(store, new, as_json)


def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new session.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="Destination; default: the same store."),
    ] = None,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Copy a session with its history, also across stores."""
    there = store if to is None else check_store(to)
    places.copy(place_of(store, name), free_place(there, new))
    _report(there, new, as_json)


def _report(store: str, name: str, as_json: bool) -> None:
    opened, _ = find(store, name)
    heads = {branch: opened.head(branch) for branch in opened.branches()}
    positions = {branch: head.position for branch, head in heads.items() if head}
    if as_json:
        print(json.dumps({"name": name, "branches": positions}))
        return
    standing = ", ".join(f"{branch} at token {at:,}" for branch, at in positions.items())
    output.print(f"{name}: {standing or 'nothing saved yet'}")


def verify(name: Name, store: Store = "sessions", as_json: Json = False) -> None:
    """Read a whole session, and verify every checksum."""
    opened, _ = find(store, name)
    found = opened.verify()
    if as_json:
        print(json.dumps({"name": name, **found.__dict__}))
    else:
        output.print(
            f"{name}: verified {found.commits} commits and {found.refs} refs "
            f"({size_text(found.bytes)})"
        )
    if found.unreferenced:
        note(
            f"{name}: no ref leads to {len(found.unreferenced)} of its newest commits: refs are "
            f"lost, or a writer was killed; streamlm sessions recover {name} restores them",
            word="error: ",
            style="bold red",
        )
        raise typer.Exit(1)


def recover(name: Name, store: Store = "sessions", as_json: Json = False) -> None:
    """Restore a damaged session to its newest intact state."""
    path, _ = locate(store, name)
    if places.is_vacant_folder(path):
        raise NotFound(
            f"{full_path(path)} holds no session, only what an interrupted creation left; nothing "
            f"was saved in it: feed {name.partition('@')[0]} again, or delete it"
        )
    mended = places.repair_header(path) if places.occupied(path) else None
    opened, branch = find(store, name)
    found = opened.recover(branch)
    damage = [*([mended] if mended else []), *found.damage]
    if as_json:
        facts = {"position": found.head.position, "damage": damage, "found": found.found}
        print(json.dumps({"name": name, **facts}))
        return
    for text in damage:
        note(text, word="lost: ", style="bold red")
    for text in found.found:
        note(text, word="found: ", style="bold")
    state = "restored to" if damage or found.found else "intact, at"
    output.print(f"{name}: {state} token {found.head.position:,}")
