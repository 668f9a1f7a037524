"""`streamlm serve`: many sessions over HTTP, for OpenAI's clients and others."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from streamlm.cli.options import MODEL_HELP, Device, Settings, Store, parsed_settings

APP = "apps.server.launch"  # imported when called, as apps import this package


def serve(
    store: Store = "sessions",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP)] = "books",
    setting: Settings = None,
    device: Device = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Sessions that write at once.")] = 16,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other computers need keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="API keys, one a line: KEY or NAME KEY. Each has its own sessions.",
        ),
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Allow other computers without keys.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which a server without keys may be called. Repeatable.",
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones get 503.")
    ] = 64,
    session_memory: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Memory for open sessions.")
    ] = 1024,
    max_body: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="The longest text to feed.")
    ] = 4096,
    grace: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Time for running requests at the end."),
    ] = 30.0,
) -> None:
    """Serve many sessions over HTTP: OpenAI's API, and sessions that last.

    Needs the extra `server`. SIGTERM finishes what is being written, saves everything and ends.
    """

    def say(line: str) -> None:
        print(line, flush=True)

    import_module(APP).run(
        store,
        model=model,
        device=device,
        settings=parsed_settings(setting),
        rows=rows,
        host=host,
        port=port,
        api_key_file=None if api_key_file is None else str(api_key_file),
        without_keys=without_keys,
        allow_hosts=allow_host or (),
        max_waiting=max_waiting,
        session_mib=session_memory,
        max_body_mib=max_body,
        grace=grace,
        say=say,
    )
