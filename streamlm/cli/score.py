"""`streamlm score`: the bits per byte of a text, given everything a session has read."""

import json

from streamlm.cli.display import interruptible, reading_bar, show_report
from streamlm.cli.options import (
    Device,
    Errors,
    Files,
    Json,
    OnError,
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
    errors: OnError = Errors.STRICT,
    as_json: Json = False,
) -> None:
    """Score a text given everything the session has read. The session is not modified."""
    with (
        interruptible(lambda: "nothing was changed"),
        open_sources(files, errors) as sources,
        open_optional(store, session, model, device, settings=setting, readonly=True) as opened,
        reading_bar("scoring", files) as progress,
    ):
        report = opened.score(*sources, errors=errors.value, progress=progress)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    show_report(report, {"context": f"{report.position:,} tokens"})
