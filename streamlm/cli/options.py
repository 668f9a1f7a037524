"""What commands share: options, and what names and files on the command line stand for."""

import codecs
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_store import Mismatch, NotFound
from memory_store.backends.object_client import is_url, split
from memory_store.places import named, occupied, open_store, session_names
from memory_store.store import Store as OpenStore
from streamlm.sessions.sources import Source

if TYPE_CHECKING:
    from streamlm.sessions.session import Session
    from streamlm.training.recipe import Recipe

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
    store: str,
    name: str,
    model: str,
    *,
    device: str,
    readonly: bool = False,
    create: bool = False,
    keep_all: bool = False,
) -> "Session":
    """Open a session by name; what is not there is told before the model is loaded.

    Args:
        keep_all: a new session never lets go of old states.

    Raises:
        NotFound: lists the sessions, or branches, that there are.
        Mismatch: names the model that does not fit.
    """
    path, branch = locate(store, name)
    if not create or branch != "main" or occupied(path):
        kept, _ = existing(store, name)
        if kept.head(branch) is None and not (create and branch == "main"):
            raise no_branch(kept, name)
    from streamlm.sessions.opening import RETENTION, open_session  # needs torch

    try:
        return open_session(
            path,
            model,
            branch=branch,
            device=device,
            readonly=readonly,
            create=create,
            retention=None if keep_all else RETENTION,
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


def training_run(
    recipe: Path, out: Path | None, *, resume: bool, steps: int | None
) -> "tuple[Recipe, Path, Callable[[], str]]":
    """The recipe of a training, its folder, and what an interruption says of it.

    Raises:
        ValueError: the folder holds a run that is not gone on with.
    """
    from streamlm.training.recipe import Recipe  # needs torch

    chosen = Recipe.load(recipe)
    if steps is not None:
        chosen = replace(chosen, train=replace(chosen.train, steps=steps))
    folder = out or Path("runs") / recipe.stem
    if not resume and (folder / "last").exists():
        raise ValueError(f"{folder} holds a run already; allowed: --resume, or another --out")

    def left_behind() -> str:
        if (folder / "last").exists():
            return f"--resume goes on from the last of the saves, in {folder / 'last'}"
        return "nothing was saved yet"

    return chosen, folder, left_behind
