"""Options that commands share, and the sessions and files that arguments name."""

import codecs
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer

from memory_store.backends.object_client import is_url, split
from streamlm.cli.unpacked import unpacked
from streamlm.sessions.following import Followed
from streamlm.sessions.shelf import open_named
from streamlm.sessions.sources import Between, SkippedInput, Source

if TYPE_CHECKING:
    from streamlm.sessions.session import Session


def check_store(store: str) -> str:
    """Check the value of --store."""
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
        callback=check_store,
        help="Folder of the sessions, or s3://BUCKET/PREFIX, gs://…, az://….",
    ),
]
# What `streamlm.load` takes.
MODEL_HELP = (
    "A bundled or downloaded model (see streamlm models list), a checkpoint directory, a Hugging "
    "Face directory, a .gguf file, or ORG/NAME of a model on the Hugging Face hub."
)
Model = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help=MODEL_HELP),
]
SessionModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"{MODEL_HELP} Default: the session's, if it has a name, or books.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        help="A window of a Llama-family model, such as memory_len=1024; gates=FILE; or "
        "retrieval=FILE, of streamlm calibrate, which false switches off. Repeats.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SessionName = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="NAME[@BRANCH]",
        help="The session to use; default: a new one in memory.",
    ),
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Text files, .html, .epub and .pdf, also in folders, .zip, .gz, .xz and .bz2; - is "
        "standard input.",
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help=r"Text to read between two files; \n and \t are escapes."),
]


class Errors(StrEnum):
    """How to treat bytes that are not text."""

    STRICT = "strict"
    REPLACE = "replace"


OnError = Annotated[
    Errors,
    typer.Option("--errors", help="On invalid UTF-8 or binary files: fail, or read U+FFFD."),
]
Name = Annotated[
    str, typer.Argument(metavar="NAME[@BRANCH]", help="The session, or one of its branches.")
]


def parsed_settings(given: Sequence[str] | None) -> dict[str, Any]:
    """The values of --setting by name; a value that is JSON is read as such, others are text."""
    settings: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--setting {text!r}; allowed: NAME=VALUE")
        if name in settings:
            raise ValueError(f"--setting {name} given twice; allowed: once")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def save_intervals(given: Sequence[str] | None) -> dict[str, Any]:
    """The values of --save-every, as options of `streamlm.open`."""
    found: dict[str, Any] = {}
    for text in given or ():
        units = {"s": 1, "m": 60, "h": 3600}
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])|(\d+)", text.strip())
        if match is None:
            raise ValueError(f"--save-every {text!r}; allowed: tokens, or 30s, 5m, 1h")
        name = "save_every" if match[3] else "save_seconds"
        if name in found:
            raise ValueError(
                f"--save-every {text}: given twice; allowed: one of tokens, one of time"
            )
        found[name] = int(match[3]) if match[3] else float(match[1]) * units[match[2]]
    return found


def open_optional(
    store: str,
    session: str | None,
    model: str | None,
    device: str,
    *,
    settings: Sequence[str] | None = None,
    readonly: bool,
    create: bool = False,
) -> "Session":
    """Open a session by name; None is a new session in memory. `settings` as for --setting.

    Args:
        create: whether to begin a session that does not exist.
    """
    chosen = parsed_settings(settings)
    if session is None:
        from streamlm.checkpoints.checkpoint import load_checkpoint
        from streamlm.sessions.session import Session
        from streamlm.sessions.windows import DEFAULT_MODEL

        return Session(load_checkpoint(model or DEFAULT_MODEL, device=device, settings=chosen))
    return open_named(
        store, session, model, device=device, settings=chosen, readonly=readonly, create=create
    )


@contextmanager
def open_sources(
    files: Sequence[str],
    errors: Errors,
    *,
    separator: str | None = None,
    follow: bool = False,
    stdin_skip: int = 0,
) -> Iterator[list[Source]]:
    """The sources for FILE…; refuses a file that is not text before anything is read.

    Args:
        follow: read the only file as it grows.
        stdin_skip: bytes of standard input to skip.
        separator: text between two sources; escapes as for --stop.
    """
    if files.count("-") > 1:
        raise ValueError("standard input (-) given twice; allowed: once")
    if "-" in files and sys.stdin is None:
        raise ValueError("standard input (-) is closed; allowed: files")
    if stdin_skip and "-" not in files:
        raise ValueError("--stdin-skip without standard input; allowed: with - among the files")
    if follow:
        yield [_followed(files)]
        return
    sources: list[Source] = []
    folder: Path | None = None
    with ExitStack() as stack:
        for file in files:
            path = Path(file)
            if file == "-":
                given = sys.stdin.buffer
                skipped = SkippedInput(given, stdin_skip) if stdin_skip else given
                sources.append(cast("IO[bytes]", skipped))
            elif path.is_fifo() or path.is_char_device():  # readable only once
                sources.append(stack.enter_context(open(path, "rb")))
            elif path.exists():
                if folder is None:
                    folder = Path(stack.enter_context(TemporaryDirectory(prefix="streamlm-")))
                for each in unpacked(path, folder):
                    if errors is Errors.STRICT:
                        check_text(each, shown=path)
                    sources.append(each)
            else:
                raise FileNotFoundError(f"no file {file!r}")
        if separator:
            from streamlm.runtime.sampling import unescaped

            # A file, since files alone are recognised when an interrupted command resumes.
            between = Path(stack.enter_context(TemporaryDirectory(prefix="streamlm-")), "separator")
            between.write_text(unescaped(separator), encoding="utf-8")
            sources = [each for source in sources for each in (Between(between), source)][1:]
        yield sources


def _followed(files: Sequence[str]) -> Followed:
    path = Path(files[0])
    if len(files) != 1 or not path.is_file():
        raise ValueError(f"--follow with {' '.join(files)}; allowed: with one file of text")
    return Followed(path)


def check_text(path: Path, *, shown: Path | None = None) -> None:
    """Raise ValueError with the position of the first byte that is not UTF-8 text.

    Args:
        shown: the file or folder that `path` was unpacked from, for the message.
    """
    name = f"{path.name} in {shown}" if shown is not None and shown != path else str(path)
    remedy = "; --errors replace reads it anyway"
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
                    f"{name} is not UTF-8 text: {error.reason} at byte {at:,}{remedy}"
                ) from None
            if b"\0" in block:
                at = start + block.index(b"\0")
                raise ValueError(f"{name} looks binary: NUL at byte {at:,}{remedy}")
            if not block:
                return
            start += len(block)
