"""`streamlm feed`: read text into a session."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from streamlm.cli.display import interruptible, note, note_unknown, reading_bar, show_report
from streamlm.cli.options import (
    Device,
    Errors,
    Files,
    Json,
    OnError,
    Separator,
    SessionModel,
    Settings,
    Store,
    open_sources,
    parsed_settings,
    save_intervals,
)
from streamlm.sessions.shelf import full_path, locate, open_named
from streamlm.units import size_text

if TYPE_CHECKING:
    from streamlm.sessions.session import Session


def feed(
    files: Files,
    session: Annotated[
        str,
        typer.Option("--session", metavar="NAME[@BRANCH]", help="The session to resume or begin."),
    ],
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="For a new session: never delete old snapshots.")
    ] = False,
    score: Annotated[
        bool, typer.Option("--score", help="Also compute bits per byte, which is slower.")
    ] = False,
    store: Store = "sessions",
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    separator: Separator = None,
    errors: OnError = Errors.STRICT,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Read the file as it grows, until Ctrl-C. Implies --once."),
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="Skip what an earlier feed with --once has read of the files."),
    ] = False,
    save_every: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|TIME",
            help="Save after N tokens, or a TIME such as 30s or 5m; twice for both. Default: 16384 "
            "tokens or 30s, whichever comes first.",
        ),
    ] = None,
    stdin_skip: Annotated[
        int, typer.Option(min=0, metavar="BYTES", help="Skip so much of standard input.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Read text into a session. After an interruption, the same command resumes.

    Standard input cannot be read twice: there the message says what was kept.
    """
    opened: Session | None = None
    every = save_intervals(save_every)
    if once and "-" in files:
        raise ValueError("--once with -; allowed: with files")

    def left_behind() -> str:
        if opened is None or opened.saved is None:
            return "nothing was read"
        again = "; the same command resumes there"
        if "-" in files:
            n = _stdin_read(opened)
            again = f"; --stdin-skip {n} goes on behind what it has of standard input" if n else ""
        return f"saved up to token {opened.saved.position:,}{again}"

    with (
        interruptible(left_behind),
        open_sources(
            files, errors, separator=separator, follow=follow, stdin_skip=stdin_skip
        ) as sources,
        open_named(
            store,
            session,
            model,
            device=device,
            settings=parsed_settings(setting),
            create=True,
            keep_all=keep_all,
            **every,
        ) as target,
        reading_bar("reading", files) as progress,
    ):
        opened, before = target, target.position
        if "-" in files and not stdin_skip and (n := _stdin_read(target)):
            note(
                f"an interrupted feed has {n:,} bytes of standard input already; --stdin-skip {n} "
                "skips them"
            )
        try:
            report = opened.feed(
                *sources,
                errors=errors.value,
                score=score,
                once=once or follow,
                progress=progress,
            )
        except ValueError as error:
            if opened.position == before:
                raise
            opened.save()
            raise ValueError(f"{error}; {left_behind()}") from None
    state_bytes, saved, tail = opened.state.nbytes, opened.saved, len(opened.tail.encode())
    note_unknown(report, opened.checkpoint.name)
    path = full_path(locate(store, session)[0])
    if as_json:
        facts = report.to_dict() | {"state_bytes": state_bytes, "held_bytes": tail}
        snapshot = saved.seq if saved else None
        print(json.dumps(facts | {"session": session, "path": path, "snapshot": snapshot}))
        return
    held = {"held back": f"{tail} byte{'s'[: tail != 1]}; the last word may be incomplete"}
    rows = {
        **(held if tail else {}),
        "position": f"{report.position:,} tokens",
        "state": size_text(state_bytes),
        "session": path,
    }
    show_report(report, rows)


def _stdin_read(session: "Session") -> int:
    """Bytes of standard input that an interrupted feed has read into a session."""
    cursor = session.live.cursor
    return cursor.n_bytes if cursor is not None and not cursor.digest else 0
