"""`streamlm sessions`: list, show, fork, rewind, delete."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memory_store import Corrupt, Ref, StoreError
from memory_store.places import named, open_store, session_names
from memory_store.store import Store as OpenStore
from streamlm.cli.display import console, note, output, show_table
from streamlm.cli.options import (
    Device,
    Json,
    Model,
    Name,
    Store,
    existing,
    locate,
    no_branch,
    open_named,
    whole_name,
)
from streamlm.units import parse_time, size_text, time_text

NEWEST = 20  # snapshots that are listed unless all are asked for

# Plain help and usage errors: rich's boxes cut off the names of options in a narrow terminal.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List sessions, and look after them.",
)


@app.command("list")
def list_sessions(store: Store = "sessions", as_json: Json = False) -> None:
    """Every session and branch: how far it has read, its size, when it was saved."""
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for name in session_names(store):
        try:
            rows += _branches(open_store(named(store, name)), name)
        except StoreError as error:
            unreadable[name] = str(error)
    if as_json:
        print(json.dumps({"sessions": rows, "unreadable": unreadable}))
    elif rows:
        cells = [
            (
                row["name"],
                f"{row['position']:,}",
                "" if "@" in row["name"] else size_text(row["bytes"]),  # branches share it
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


def _branches(kept: OpenStore, name: str) -> list[dict[str, Any]]:
    """A row for each branch, main first; one that says "never" where nothing was saved yet."""
    size, rows = kept.size(), []
    for branch in sorted(
        kept.branches() or ["main"], key=lambda branch: (branch != "main", branch)
    ):
        head = kept.head(branch)
        rows.append(
            {
                "name": name if branch == "main" else f"{name}@{branch}",
                "position": head.position if head else 0,
                "saved": head.created if head else None,
                "bytes": size,
            }
        )
    return rows


@app.command()
def show(
    name: Name,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also show what is remembered, slot by slot.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Save a picture of the memory: .png, .svg.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help=f"List all snapshots, not only the newest {NEWEST}.")
    ] = False,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One session: where it lies, its branches, and the snapshots of the branch."""
    kept, branch = existing(store, name)
    refs = kept.refs(branch)
    if not refs:
        raise no_branch(kept, name)
    path, _ = locate(store, name)
    listed = refs if every or as_json else refs[-NEWEST:]
    sizes = [_size_of(kept, ref) for ref in listed]
    snapshots = [
        {
            "snapshot": r.seq,
            "position": r.position,
            "saved": r.created,
            "commit": r.commit.id,
            "bytes": size,
            "kept": whole,
        }
        for r, size, whole in zip(listed, sizes, kept.loadable(listed), strict=True)
    ]
    facts: dict[str, Any] = {
        "name": name,
        "path": whole_name(path),
        "bytes": kept.size(),
        "branches": kept.branches(),
        "pins": {pin: commit.position for pin, commit in kept.pins().items()},
        "retention": kept.attributes.get("retention"),
        "position": refs[-1].position,
        "snapshots": snapshots,
    }
    report = None
    if memory or plot is not None:
        with open_named(store, name, model, device=device, readonly=True) as session:
            report = session.memory_report()
            decode = session.checkpoint.tokenizer.decode
    if plot is not None and report is not None:
        from streamlm.cli.memory_view import draw_memory

        draw_memory(report, plot, name=name)
    if as_json:
        print(json.dumps(facts | ({"memory": report.to_dict()} if memory and report else {})))
        return
    output.print(f"{whole_name(path)}  {size_text(kept.size())}")
    output.print(f"branches: {', '.join(kept.branches())}; this is {branch}")
    if facts["pins"]:
        pins = (f"{pin} at token {at:,}" for pin, at in facts["pins"].items())
        output.print(f"pins: {', '.join(pins)}")
    output.print(f"keeps {_policy_text(facts['retention'])}")
    if len(listed) < len(refs):
        output.print(f"the newest {len(listed)} of {len(refs)} snapshots; --all lists the others")
    cells = [
        (
            str(ref.seq),
            f"{ref.position:,}",
            time_text(ref.created),
            "damaged" if size is None else size_text(size),
            "" if entry["kept"] else "tokens only",
        )
        for ref, size, entry in zip(listed, sizes, snapshots, strict=True)
    ]
    columns = ("snapshot", "position", "saved at", "size", "kept")
    show_table(columns, cells, right=(*columns[:2], "size"))
    if memory and report is not None:
        from streamlm.cli.memory_view import show_memory

        output.print()
        show_memory(report, decode)
    if plot is not None:
        output.print(str(plot))


def _policy_text(retention: dict[str, Any] | None) -> str:
    if not retention or not retention.get("last"):
        return "all states"
    older = "thins out the older ones by age" if retention.get("thin") else "lets go of the others"
    tokens = "all tokens" if retention.get("log", True) else "the tokens since then"
    return f"the newest {retention['last']} states, and {tokens}; {older}"


def _size_of(kept: OpenStore, ref: Ref) -> int | None:
    """Bytes that a snapshot itself holds; those it shares with others lie there. None: damaged."""
    try:
        return kept.size(ref)
    except Corrupt:
        return None


@app.command()
def fork(
    name: Name,
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="Name of the new branch.")],
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Begin a branch where a session stands; nothing is copied. Use it as NAME@BRANCH."""
    kept, start = existing(store, name)
    base = name.partition("@")[0]
    locate(store, f"{base}@{branch}")
    head = kept.head(start)
    if head is None:
        raise no_branch(kept, name)
    if kept.head(branch) is not None:
        raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
    ref = kept.publish(head, branch=branch)
    if as_json:
        print(json.dumps({"name": f"{base}@{branch}", "position": ref.position}))
    else:
        output.print(f"{base}@{branch} begins at token {ref.position:,}")


@app.command()
def rewind(
    name: Name,
    tokens: Annotated[int | None, typer.Option(help="Go back to this position.")] = None,
    snapshot: Annotated[int | None, typer.Option(help="Go to this snapshot of `show`.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Go to where it stood then: 2026-03-01 18:30, or 90m, 2h, 3d ago."
        ),
    ] = None,
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Go back to a position, a snapshot or a time; later snapshots stay, so it can be undone."""
    if sum(goal is not None for goal in (tokens, snapshot, time)) != 1:
        raise ValueError(
            "allowed: one of --tokens, --snapshot and --time; see streamlm sessions show"
        )
    then = None if time is None else parse_time(time)
    with open_named(store, name, model, device=device) as session:
        before = session.position
        session.rewind(tokens=tokens, snapshot=snapshot, time=then)
        after = session.position
    if as_json:
        print(json.dumps({"name": name, "from": before, "position": after}))
    else:
        output.print(f"{name}: from token {before:,} to {after:,}")


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = "sessions",
    as_json: Json = False,
) -> None:
    """Remove a session with all its branches, for good."""
    if "@" in name:
        raise ValueError(f"{name!r} is a branch; allowed: a session, with all its branches")
    kept, _ = existing(store, name)
    if not yes:
        console.print(f"delete {name} ({size_text(kept.size())}) for good? [y/N] ", end="")
        if not sys.stdin or sys.stdin.readline().strip().lower() not in ("y", "yes"):
            note("nothing is deleted")
            raise typer.Exit(1)
    kept.delete()
    if as_json:
        print(json.dumps({"name": name, "deleted": True}))
    else:
        output.print(f"{name} is deleted")
