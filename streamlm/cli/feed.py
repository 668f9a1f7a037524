"""`streamlm feed`: read text into a session."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from streamlm.cli.display import interruptible, reading_bar, show_report
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
    as_json: Json = False,
) -> None:
    """Read text into a session. After an interruption, the same command resumes."""
    opened: Session | None = None

    def left_behind() -> str:
        if opened is None or opened.saved is None:
            return "nothing was read"
        again = "" if "-" in files else "; the same command resumes there"
        return f"saved up to token {opened.saved.position:,}{again}"

    with (
        interruptible(left_behind),
        open_sources(files, errors, separator=separator) as sources,
        open_named(
            store,
            session,
            model,
            device=device,
            settings=parsed_settings(setting),
            create=True,
            keep_all=keep_all,
        ) as target,
        reading_bar("reading", files) as progress,
    ):
        opened, before = target, target.position
        try:
            report = opened.feed(*sources, errors=errors.value, score=score, progress=progress)
        except ValueError as error:
            if opened.position == before:
                raise
            opened.save()
            raise ValueError(f"{error}; {left_behind()}") from None
    state_bytes, saved, tail = opened.state.nbytes, opened.saved, len(opened.tail.encode())
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
