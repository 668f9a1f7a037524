"""`streamlm score`: the bits per byte of a text, given everything a session has read."""

import json
from typing import Annotated

import typer

from streamlm.cli.display import interruptible, note_unknown, reading_bar, show_report
from streamlm.cli.options import (
    Device,
    Errors,
    Files,
    Json,
    OnError,
    Separator,
    SessionModel,
    SessionName,
    Settings,
    Store,
    open_optional,
    open_sources,
)


def score(
    files: Files,
    session: SessionName = None,
    store: Store = "sessions",
    model: SessionModel = None,
    setting: Settings = None,
    device: Device = "auto",
    separator: Separator = None,
    errors: OnError = Errors.STRICT,
    lines: Annotated[
        bool, typer.Option("--lines", help="Print one JSON object for each line of the text.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a text given everything the session has read. The session is not modified."""
    if lines and as_json:
        raise typer.BadParameter("--lines prints JSON itself; allowed: --lines or --json")
    with (
        interruptible(lambda: "nothing was changed"),
        open_sources(files, errors, separator=separator) as sources,
        open_optional(store, session, model, device, settings=setting, readonly=True) as opened,
        reading_bar("scoring", files) as progress,
    ):
        if lines:
            from streamlm.cli.line_scores import NumberedLines, line_scores

            numbered = [NumberedLines(source, errors.value) for source in sources]
            report = opened.score(*numbered, logprobs=True, progress=progress)
            lengths = opened.checkpoint.tokenizer.token_lengths
            scores = list(line_scores(numbered, report, lengths))
        else:
            report = opened.score(*sources, errors=errors.value, progress=progress)
    note_unknown(report, opened.checkpoint.name)
    if lines:
        for each in scores:
            print(json.dumps(each))
        return
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    show_report(report, {"context": f"{report.position:,} tokens"})
