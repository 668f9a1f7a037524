"""`streamlm chat`: talk to a model, in a terminal or by pipe."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_store import NotFound
from memory_store.places import occupied
from streamlm.checkpoints.catalogue import chat_models, present
from streamlm.cli.display import interruptible, note, reading_bar
from streamlm.cli.options import (
    MODEL_HELP,
    Device,
    Json,
    SessionName,
    Settings,
    Store,
    open_optional,
)
from streamlm.cli.recall import note_recalled, recalled_facts
from streamlm.sessions.shelf import locate

if TYPE_CHECKING:
    from streamlm.sessions.session import Session

READ = "/read "
HELP = (
    "Ctrl-C stops a reply, Ctrl-D leaves. A line that ends with \\ continues. "
    f"{READ}FILE reads a text."
)
SHOWN = 300  # characters of each message of the last turn, when a chat is resumed

Ask = Callable[[str], Iterator[str]]


def chat(
    session: SessionName = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Say this, and leave after the reply. Repeatable."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt of a chat that begins.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of a reply.")] = 512,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 is greedy.")] = 0.2,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the top tokens with this total probability.")
    ] = 0.9,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the top probability.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 penalizes tokens of the reply so far.")
    ] = 1.1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random generator; default: the session's.")
    ] = None,
    recall: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Passages that left memory to put before a message. Default: 1 with a session.",
        ),
    ] = None,
    store: Store = "sessions",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"{MODEL_HELP} Default: the session's; of a new one, the best downloaded one.",
        ),
    ] = None,
    setting: Settings = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Talk to a model. A session remembers the talk, and what else it has read.

    Without --prompt, messages are typed; standard input that is not a terminal is one message.
    """
    typed = not prompt and sys.stdin is not None and sys.stdin.isatty()
    if typed and as_json:
        raise ValueError("--json in a terminal; allowed: with --prompt, or with a message by pipe")
    if recall and session is None:
        raise ValueError("--recall without --session; allowed: with a session")
    messages = list(prompt or ()) if prompt or typed else [_piped()]
    begun = session is not None and occupied(locate(store, session)[0])
    chosen = default_model() if model is None and not begun else model
    if typed:
        note("loading the model…")
    kept = f"session {session} includes the talk so far" if session else "nothing was saved"
    with (
        interruptible(lambda: kept),
        open_optional(
            store, session, chosen, device, settings=setting, readonly=False, create=True
        ) as opened,
    ):
        seeds = [seed]
        passages = _default_recall(opened, session) if recall is None else recall

        def ask(message: str) -> Iterator[str]:
            pieces = opened.reply(
                message,
                system=system,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seeds[0],
                recall=passages,
            )
            seeds[0] = None  # a generator that is seeded for every message repeats itself
            if passages and not as_json:
                return _noted(opened, pieces, none=recall is not None)
            return pieces

        if typed:
            _check(opened)
            _talk(opened, ask, name=session)
        else:
            for message in messages:
                _say(opened, ask, message, as_json=as_json, recall=bool(passages))


def default_model() -> str:
    """The best model that chats and is here.

    Raises:
        ValueError: there is none; says how to get one.
    """
    known = chat_models()
    found = [name for name in present() if name in known]
    if not found:
        raise ValueError(
            f"no model that chats is here; streamlm models get {known[0]} downloads one, and "
            "--model names another"
        )
    return found[0]


def _default_recall(session: "Session", name: str | None) -> int:
    """1 for a session whose tokens are all there, else 0."""
    if name is None:
        return 0
    try:
        session.text(0, min(1, session.position))
    except NotFound:  # old tokens were deleted
        return 0
    return 1


def _noted(session: "Session", pieces: Iterator[str], *, none: bool) -> Iterator[str]:
    """A reply, and a note before it of what was recalled; see `note_recalled`."""
    first = next(pieces, "")  # the message is read before it
    note_recalled(recalled_facts(session), none=none)
    if first:
        yield first
    yield from pieces


def _piped() -> str:
    """Standard input as one message.

    Raises:
        ValueError: it is closed or empty.
    """
    text = "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8", "replace")
    if not text.strip():
        raise ValueError("standard input is empty; allowed: a message there, or --prompt TEXT")
    return text.removesuffix("\n")


def _check(session: "Session") -> None:
    _ = session.checkpoint.chat  # a model that does not chat is refused before anything is typed


def _say(session: "Session", ask: Ask, message: str, *, as_json: bool, recall: bool) -> None:
    """Print the reply to one message."""
    before, started = session.position, time.perf_counter()
    pieces = ask(message)
    if not as_json:
        _show(pieces)
        return
    text = "".join(pieces)
    facts: dict[str, Any] = {
        "reply": text,
        "tokens": session.position - before,
        "position": session.position,
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(facts | ({"recalled": recalled_facts(session)} if recall else {})))


def _show(pieces: Iterator[str]) -> None:
    """Print a reply as it is generated, and the end of its last line."""
    last = "\n"
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            last = piece[-1]
    finally:
        if last != "\n":
            sys.stdout.write("\n")
        sys.stdout.flush()


def _talk(session: "Session", ask: Ask, *, name: str | None) -> None:
    """Messages from the terminal, until Ctrl-D."""
    at = f", session {name} at token {session.position:,}" if name else ""
    note(f"{session.checkpoint.name}{at}. {HELP}")
    if name and session.conversation is not None:
        for turn in session.transcript()[-2:]:
            text = " ".join(turn["content"].split())
            note(f"{turn['role']}: {text[:SHOWN]}{'…' * (len(text) > SHOWN)}", style="dim")
    with _line_editing(), _signals_end():
        while (message := _typed()) is not None:
            if not message.strip():
                continue
            try:
                if message.startswith(READ):
                    _read(session, message.removeprefix(READ).strip())
                else:
                    _show(ask(message))
            except KeyboardInterrupt:
                note("stopped; the talk goes on")
            except (ValueError, OSError) as error:
                note(str(error), word="error: ", style="bold red")
            if name:
                session.save()
    note(f"saved: streamlm chat --session {name} goes on" if name else "nothing was saved")


def _read(session: "Session", file: str) -> None:
    path = Path(file).expanduser()
    with reading_bar("reading", [str(path)]) as progress:
        report = session.feed(path, progress=progress)
    note(f"read {report.tokens:,} tokens")


def _typed() -> str | None:
    """A message from the terminal, of one or several lines; None at its end."""
    lines: list[str] = []
    while True:
        try:
            lines.append(input("… " if lines else "> "))
        except EOFError:
            print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D leaves")
            lines = []
            continue
        if not lines[-1].endswith("\\"):
            return "\n".join(lines)
        lines[-1] = lines[-1][:-1]


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, a history, and pasted lines as one message, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    if "libedit" in (readline.__doc__ or ""):  # of macOS; it has no such setting
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    try:
        yield
    finally:
        readline.parse_and_bind("set enable-bracketed-paste off")


@contextmanager
def _signals_end() -> Iterator[None]:
    """Signals other than Ctrl-C end the talk, not just a reply; each Ctrl-C stops one."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    handlers = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
