"""`streamlm sessions`, and what all commands share: options, and what names and files stand for."""

import codecs
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from memory_store import Mismatch, NotFound, StoreError
from memory_store.object_client import is_url, split
from memory_store.places import named, occupied, open_store, session_names
from memory_store.store import Store as OpenStore
from streamlm.display import console, note, output, show_table, size_text, time_text
from streamlm.memory_view import draw_memory, show_memory
from streamlm.opening import open_session
from streamlm.session import Session
from streamlm.sources import Source

SPLITS = ("valid", "test", "valid-extra", "test-extra")


def place(store: str) -> str:
    """The value of --store, if there can be sessions."""
    if is_url(store):
        try:
            split(store)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    elif Path(store).exists() and not Path(store).is_dir():
        raise typer.BadParameter(f"{store!r} is a file.")
    return store


Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        callback=place,
        help="Where the sessions are: a folder, or s3://BUCKET/PREFIX, gs://…, az://….",
    ),
]
Model = Annotated[str, typer.Option("--model", help="A checkpoint directory, or a bundled name.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SessionName = Annotated[
    str | None, typer.Option("--session", metavar="NAME[@BRANCH]", help="The session to use.")
]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Text files; - is standard input.")
]


class Errors(StrEnum):
    """What to do about bytes that are no text."""

    STRICT = "strict"
    REPLACE = "replace"


OnError = Annotated[
    Errors,
    typer.Option("--errors", help="Invalid UTF-8, binary files: refuse, or read U+FFFD there."),
]
Name = Annotated[str, typer.Argument(metavar="NAME[@BRANCH]", help="The session.")]

# Plain help and usage errors: rich's boxes cut off the names of options in a narrow terminal.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List sessions, and look after them.",
)


def locate(store: str, name: str) -> tuple[str, str]:
    """The place and the branch that NAME or NAME@BRANCH stands for.

    Raises:
        ValueError: not a name; names never lead out of the store folder.
    """
    base, _, branch = name.partition("@")
    for part in (base, branch or "main"):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", part):
            raise ValueError(
                f"session {name!r}; allowed: NAME or NAME@BRANCH, each of at most 100 letters, "
                "digits, '.', '_', '-'; --store chooses the folder"
            )
    return named(store, base), branch or "main"


def whole_name(place: str) -> str:
    """A place as it is shown: a path from the root, or a URL."""
    return place if is_url(place) else str(Path(place).resolve())


def open_named(
    store: str, name: str, model: str, *, device: str, readonly: bool = False, create: bool = False
) -> Session:
    """Open a session by name; what is not there is told before the model is loaded.

    Raises:
        NotFound: lists the sessions, or branches, that there are.
        Mismatch: names the model that does not fit.
    """
    path, branch = locate(store, name)
    if not create or branch != "main" or occupied(path):
        kept, _ = existing(store, name)
        if kept.head(branch) is None and not (create and branch == "main"):
            raise no_branch(kept, name)
    try:
        return open_session(
            path, model, branch=branch, device=device, readonly=readonly, create=create
        )
    except Mismatch as error:
        differing = ", ".join(
            f"{what} {(recorded or 'none')[:12]} there and {(given or 'none')[:12]} here"
            for what, (recorded, given) in error.differing.items()
        )
        raise Mismatch(
            f"session {name!r} was written with another model than --model {model} ({differing}); "
            "allowed: the model it was written with, or another session",
            error.differing,
        ) from None


def existing(store: str, name: str) -> tuple[OpenStore, str]:
    """The store and the branch of a session that is there.

    Raises:
        NotFound: lists those that are.
    """
    path, branch = locate(store, name)
    if not occupied(path):
        known = ", ".join(sorted(session_names(store))) or "none yet"
        raise NotFound(f"no session {name.partition('@')[0]!r} in {store}; there are: {known}")
    return open_store(path), branch


def no_branch(kept: OpenStore, name: str) -> NotFound:
    """The error for a session without this branch: tells what it has."""
    base, _, branch = name.partition("@")
    branches = kept.branches()
    if not branches:
        return NotFound(f"session {base!r} has nothing saved; feed it, or delete it")
    return NotFound(
        f"session {base!r} has no branch {branch or 'main'!r}; it has {', '.join(branches)}; "
        f"streamlm sessions fork {base} NEW begins one"
    )


@contextmanager
def open_sources(files: Sequence[str], errors: Errors) -> Iterator[list[Source]]:
    """What FILE… stands for. A file that is no text is refused before anything is read."""
    if files.count("-") > 1:
        raise ValueError("standard input (-) given twice; allowed: once")
    if "-" in files and sys.stdin is None:
        raise ValueError("standard input (-) is closed; allowed: files")
    sources: list[Source] = []
    with ExitStack() as stack:
        for file in files:
            path = Path(file)
            if file == "-":
                sources.append(sys.stdin.buffer)
            elif path.is_fifo() or path.is_char_device():  # can be read only once
                sources.append(stack.enter_context(open(path, "rb")))
            else:
                if path.is_file() and errors is Errors.STRICT:
                    _check_text(path)
                sources.append(path)
        yield sources


def data_file(name: str, folder: Path) -> Path:
    """The file that `eval --data NAME` stands for: a split of the books, or a path."""
    if name in SPLITS:
        path = folder / "books" / f"{name}.txt.xz"
        if not path.exists():
            raise FileNotFoundError(f"split {name!r} is not at {path}; see --data-dir")
        return path
    if Path(name).is_dir():
        raise IsADirectoryError(f"{name} is a directory; allowed: files, or {', '.join(SPLITS)}")
    if not Path(name).exists():
        raise FileNotFoundError(f"no file {name!r}, and no split; splits: {', '.join(SPLITS)}")
    return Path(name)


def _check_text(path: Path) -> None:
    """Raise a ValueError that says where the bytes of a file are no UTF-8 text."""
    remedy = "; --errors replace reads it all the same"
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while True:
            block = file.read(1 << 20)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = start - held + error.start
                raise ValueError(
                    f"{path} is no UTF-8 text: {error.reason} at byte {at:,}{remedy}"
                ) from None
            if b"\0" in block:
                at = start + block.index(b"\0")
                raise ValueError(f"{path} looks binary: NUL at byte {at:,}{remedy}")
            if not block:
                return
            start += len(block)


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
    snapshots = [
        {
            "snapshot": r.seq,
            "position": r.position,
            "saved": r.created,
            "commit": r.commit.id,
            "kept": whole,
        }
        for r, whole in zip(refs, kept.whole(refs), strict=True)
    ]
    facts: dict[str, Any] = {
        "name": name,
        "path": whole_name(path),
        "bytes": kept.size(),
        "branches": kept.branches(),
        "pins": {pin: commit.position for pin, commit in kept.pins().items()},
        "position": refs[-1].position,
        "snapshots": snapshots,
    }
    report = None
    if memory or plot is not None:
        with open_named(store, name, model, device=device, readonly=True) as session:
            report = session.memory_report()
            decode = session.checkpoint.tokenizer.decode
    if plot is not None and report is not None:
        draw_memory(report, plot, name=name)
    if as_json:
        print(json.dumps(facts | ({"memory": report.to_dict()} if memory and report else {})))
        return
    output.print(f"{whole_name(path)}  {size_text(kept.size())}")
    output.print(f"branches: {', '.join(kept.branches())}; this is {branch}")
    if facts["pins"]:
        pins = (f"{pin} at token {at:,}" for pin, at in facts["pins"].items())
        output.print(f"pins: {', '.join(pins)}")
    cells = [
        (
            str(ref.seq),
            f"{ref.position:,}",
            time_text(ref.created),
            ref.commit.id[:12],
            "" if snapshot["kept"] else "tokens only",
        )
        for ref, snapshot in zip(refs, snapshots, strict=True)
    ]
    columns = ("snapshot", "position", "saved at", "commit", "kept")
    show_table(columns, cells, right=columns[:2])
    if memory and report is not None:
        output.print()
        show_memory(report, decode)
    if plot is not None:
        output.print(str(plot))


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
    store: Store = "sessions",
    model: Model = "books",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Go back to a token position or to a snapshot; later snapshots stay, so it can be undone."""
    if (tokens is None) == (snapshot is None):
        raise ValueError("allowed: one of --tokens and --snapshot; see streamlm sessions show")
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
    store: Store = "sessions",
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
    output.print(f"{name} is deleted")
