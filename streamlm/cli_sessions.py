"""`streamlm sessions`: list, show, fork, rewind and delete what is in a store folder."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from memory_store import NotFound
from memory_store.directory import DirectoryStore
from streamlm.display import history_table, output, size_text, time_text
from streamlm.session import Session, open_session

Store = Annotated[Path, typer.Option("--store", help="Folder that holds the sessions.")]
Model = Annotated[str, typer.Option("--model", help="A checkpoint directory, or a bundled name.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Name = Annotated[str, typer.Argument(metavar="NAME[@BRANCH]", help="The session.")]

app = typer.Typer(no_args_is_help=True, help="List, show, fork, rewind and delete sessions.")


def locate(store: Path, name: str) -> tuple[Path, str]:
    """The directory and branch that NAME or NAME@BRANCH stands for.

    Raises:
        ValueError: not a name; names never lead out of the store folder.
    """
    base, _, branch = name.partition("@")
    for part in (base, branch or "main"):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part):
            raise ValueError(
                f"session {name!r}; allowed: NAME or NAME@BRANCH of letters, digits, '.', '_', '-'"
            )
    return store / f"{base}.zarr", branch or "main"


def open_named(
    store: Path, name: str, model: str, *, device: str, readonly: bool = False, create: bool = False
) -> Session:
    """Open a session by name; NotFound lists the sessions that there are."""
    path, branch = locate(store, name)
    if not path.exists() and not create:
        raise _unknown(store, name)
    return open_session(path, model, branch=branch, device=device, readonly=readonly, create=create)


def _unknown(store: Path, name: str) -> NotFound:
    known = ", ".join(sorted(path.stem for path in store.glob("*.zarr"))) or "none yet"
    return NotFound(f"no session {name!r} in {store}; there are: {known}")


def _existing(store: Path, name: str) -> tuple[DirectoryStore, str]:
    path, branch = locate(store, name)
    if not path.exists():
        raise _unknown(store, name)
    return DirectoryStore.open(path), branch


@app.command("list")
def list_sessions(store: Store = Path("sessions"), as_json: Json = False) -> None:
    """Every session and branch: how far it has read, its size, when it was saved."""
    rows: list[dict[str, Any]] = []
    for path in sorted(store.glob("*.zarr")):
        kept = DirectoryStore.open(path)
        size = kept.size()
        for branch in kept.branches():
            head = kept.head(branch)
            assert head is not None
            name = path.stem if branch == "main" else f"{path.stem}@{branch}"
            rows.append(
                {"name": name, "position": head.position, "saved": head.created, "bytes": size}
            )
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        output.print(f"no sessions in {store}; begin one: streamlm feed FILE --session NAME")
        return
    table = Table(box=None, header_style="bold")
    for column in ("session", "position", "size", "saved at"):
        table.add_column(column, justify="right" if column in ("position", "size") else "left")
    for row in rows:
        table.add_row(
            str(row["name"]),
            f"{row['position']:,}",
            size_text(row["bytes"]),
            time_text(row["saved"]),
        )
    output.print(table)


@app.command()
def show(name: Name, store: Store = Path("sessions"), as_json: Json = False) -> None:
    """One session: where it lies, its branches, and the snapshots of the branch."""
    kept, branch = _existing(store, name)
    refs = kept.refs(branch)
    if not refs:
        raise NotFound(f"{name!r} has no branch {branch!r}; it has {', '.join(kept.branches())}")
    path, _ = locate(store, name)
    if as_json:
        snapshots = [
            {"snapshot": r.seq, "position": r.position, "saved": r.created, "commit": r.commit.id}
            for r in refs
        ]
        facts = {
            "name": name,
            "path": str(path.resolve()),
            "bytes": kept.size(),
            "branches": kept.branches(),
            "position": refs[-1].position,
            "snapshots": snapshots,
        }
        print(json.dumps(facts))
        return
    output.print(f"{path.resolve()}  {size_text(kept.size())}")
    output.print(f"branches: {', '.join(kept.branches())}; this is {branch}")
    output.print(history_table(refs))


@app.command()
def fork(
    name: Name,
    branch: Annotated[str, typer.Argument(help="Name of the new branch.")],
    store: Store = Path("sessions"),
    as_json: Json = False,
) -> None:
    """Begin a branch where a session stands; nothing is copied. Use it as NAME@BRANCH."""
    kept, start = _existing(store, name)
    locate(store, f"{name.partition('@')[0]}@{branch}")
    head = kept.head(start)
    if head is None:
        raise NotFound(f"{name!r} has nothing to fork; branches: {', '.join(kept.branches())}")
    if kept.head(branch) is not None:
        raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
    ref = kept.publish(head, branch=branch)
    base = name.partition("@")[0]
    if as_json:
        print(json.dumps({"name": f"{base}@{branch}", "position": ref.position}))
    else:
        output.print(f"{base}@{branch} begins at token {ref.position:,}")


@app.command()
def rewind(
    name: Name,
    tokens: Annotated[int | None, typer.Option(help="Go back to this position.")] = None,
    snapshot: Annotated[int | None, typer.Option(help="Go to this snapshot of `show`.")] = None,
    store: Store = Path("sessions"),
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Go back to a token position or to a snapshot; later snapshots stay, so it can be undone."""
    with open_named(store, name, model, device=device) as session:
        before = session.position
        session.rewind(tokens=tokens, snapshot=snapshot)
        after = session.position
    if as_json:
        print(json.dumps({"name": name, "from": before, "position": after}))
    else:
        output.print(f"{name}: from token {before:,} to {after:,}")


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = Path("sessions"),
) -> None:
    """Remove a session with all its branches, for good."""
    if "@" in name:
        raise ValueError(f"{name!r} is a branch; allowed: a session, with all its branches")
    kept, _ = _existing(store, name)
    if not yes:
        typer.confirm(f"delete {name} ({size_text(kept.size())}) for good?", abort=True, err=True)
    kept.delete()
    output.print(f"{name} is deleted")
