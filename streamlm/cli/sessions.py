"""`streamlm sessions`: list, fork, rewind and delete; the group with all its commands."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from memory_store import StoreError
from memory_store.places import clear, named, open_store, session_names
from streamlm.cli.display import console, note, output, show_table
from streamlm.cli.options import Device, Json, Name, SessionModel, Store
from streamlm.cli.recall import index, recall
from streamlm.cli.show import show
from streamlm.cli.stored_text import text
from streamlm.cli.upkeep import copy, export, gc, import_, pin, recover, rename, unpin, verify
from streamlm.sessions.shelf import (
    branches,
    find,
    locate,
    missing_branch,
    open_named,
)
from streamlm.units import parse_time, size_text, time_text


def list_sessions(store: Store = "sessions", as_json: Json = False) -> None:
    """List sessions and branches: position, size, last save."""
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for name in session_names(store):
        try:
            opened = open_store(named(store, name))
            size = opened.size()
            rows += [{**asdict(branch), "bytes": size} for branch in branches(opened, name)]
        except StoreError as error:
            unreadable[name] = str(error)
    if as_json:
        print(json.dumps({"sessions": rows, "unreadable": unreadable}))
    elif rows:
        cells = [
            (
                row["name"],
                f"{row['position']:,}",
                "" if "@" in row["name"] else size_text(row["bytes"]),  # shared by all branches
                "never" if row["saved"] is None else time_text(row["saved"]),
            )
            for row in rows
        ]
        show_table(("session", "position", "size", "saved at"), cells, right=("position", "size"))
    elif not unreadable:
        output.print(f"no sessions in {store}; begin one: streamlm feed FILE --session NAME")
    for name, message in unreadable.items():
        note(f"session {name!r}: {message}", word="error: ", style="bold red")
    if unreadable:
        raise typer.Exit(1)


def search(
    name: Name,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 5,
    store: Store = "sessions",
    model: SessionModel = None,
    as_json: Json = False,
) -> None:
    """Search everything that a session has read.

    Finds the passages that share the rare words of TEXT. Only the tokenizer of MODEL is loaded.
    """
    opened, branch = find(store, name)
    ref = opened.head(branch)
    if ref is None:
        raise missing_branch(opened, name)
    from streamlm.checkpoints.sources import find_model
    from streamlm.sessions.search import search_store
    from streamlm.sessions.windows import recorded_model

    source = recorded_model(opened) if model is None else model
    found = search_store(opened, ref, find_model(source).read_tokenizer(), text, k=k)
    if as_json:
        rows = [{**asdict(each), "saved": each.saved and each.saved.timestamp()} for each in found]
        print(json.dumps({"name": name, "position": ref.position, "found": rows}))
        return
    if not found:
        output.print(f"{name}: nothing in {ref.position:,} tokens matches")
    for each in found:
        when = "" if each.saved is None else f", saved {time_text(each.saved.timestamp())}"
        output.print(f"token {each.start:,}{when}, score {each.score:.1f}", style="bold")
        output.print(f"  {' '.join(each.text.split())}")


def fork(
    name: Name,
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="Name of the new branch.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Create a branch from the current state, without copying.

    Its name is NAME@BRANCH.
    """
    opened, start = find(store, name)
    base = name.partition("@")[0]
    locate(store, f"{base}@{branch}")
    head = opened.head(start)
    if head is None:
        raise missing_branch(opened, name)
    if opened.head(branch) is not None:
        raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
    ref = opened.publish(head, branch=branch)
    if as_json:
        print(json.dumps({"name": f"{base}@{branch}", "position": ref.position}))
    else:
        output.print(f"{base}@{branch} begins at token {ref.position:,}")


def rewind(
    name: Name,
    to: Annotated[int | None, typer.Option(help="Position to return to, in tokens.")] = None,
    by: Annotated[int | None, typer.Option(help="Number of tokens to go back by.")] = None,
    snapshot: Annotated[int | None, typer.Option(help="Snapshot to return to; see `show`.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time to return to: 2026-03-01 18:30, or 90m, 2h, 3d ago."
        ),
    ] = None,
    store: Store = "sessions",
    model: SessionModel = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Return to a position, a snapshot or a time.

    Later snapshots are kept, so this can be undone.
    """
    if sum(goal is not None for goal in (to, by, snapshot, time)) != 1:
        raise ValueError(
            "allowed: one of --to, --by, --snapshot and --time; see streamlm sessions show"
        )
    then = None if time is None else parse_time(time)
    with open_named(store, name, model, device=device) as session:
        before = session.position
        session.rewind(to=to, by=by, snapshot=snapshot, time=then)
        after = session.position
    if as_json:
        print(json.dumps({"name": name, "from": before, "position": after}))
    else:
        output.print(f"{name}: rewound from token {before:,} to {after:,}")


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Delete a session with all its branches, or one branch with what it alone has."""
    if "@" in name:
        _delete_branch(store, name, yes=yes, as_json=as_json)
        return
    if not clear(locate(store, name)[0]):  # what an interrupted creation left needs no question
        opened, _ = find(store, name)
        _confirm(f"Delete {name} ({size_text(opened.size())})?", yes=yes)
        opened.delete()
    if as_json:
        print(json.dumps({"name": name, "deleted": True}))
    else:
        output.print(f"{name}: deleted")


def _delete_branch(store: str, name: str, *, yes: bool, as_json: bool) -> None:
    opened, branch = find(store, name)
    head = opened.head(branch)
    if head is None:
        raise missing_branch(opened, name)
    _confirm(f"Delete branch {name} (at token {head.position:,})?", yes=yes)
    commits = opened.delete_branch(branch)
    if as_json:
        print(json.dumps({"name": name, "deleted": True, "snapshots": commits}))
    else:
        output.print(f"{name}: deleted, with {commits} snapshots that it alone had")


def _confirm(question: str, *, yes: bool) -> None:
    """Ask in the terminal, unless `yes`; anything but a yes ends the command."""
    if yes:
        return
    console.print(f"{question} This cannot be undone. [y/N] ", end="")
    if not sys.stdin or sys.stdin.readline().strip().lower() not in ("y", "yes"):
        note("nothing was deleted")
        raise typer.Exit(1)


# Plain help and usage errors: rich's boxes truncate option names in a narrow terminal.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, inspect and maintain sessions.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_sessions,
    "show": show,
    "text": text,
    "search": search,
    "recall": recall,
    "index": index,
    "fork": fork,
    "rewind": rewind,
    "delete": delete,
    "gc": gc,
    "pin": pin,
    "unpin": unpin,
    "export": export,
    "import": import_,
    "rename": rename,
    "copy": copy,
    "verify": verify,
    "recover": recover,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
