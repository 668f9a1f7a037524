"""`streamlm demo`: watch a model read, remember and generate, in a browser."""

from importlib import import_module
from typing import Annotated

import typer

from streamlm.cli.display import note
from streamlm.cli.options import MODEL_HELP, Device, check_store

APP = "apps.demo.serving.launch"  # imported when called, as apps import this package


def demo(
    store: Annotated[
        str,
        typer.Option(
            "--store",
            "--sessions",
            metavar="FOLDER|URL",
            callback=check_store,
            help="Folder or URL of the sessions.",
        ),
    ] = "sessions",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"{MODEL_HELP} It is that of new sessions. Default: the best that is here.",
        ),
    ] = None,
    device: Device = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 allows other computers.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 7860,
    root_path: Annotated[
        str | None, typer.Option(help="URL path under which a proxy serves the demo.")
    ] = None,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PASSWORD",
            envvar="STREAMLM_DEMO_AUTH",
            help="A login, with its own sessions. Repeatable, or separated by spaces in the "
            "variable, which does not appear in a list of processes.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which browsers may call the server, such as a proxy's. Repeatable.",
        ),
    ] = None,
    shared: Annotated[
        bool | None,
        typer.Option(
            "--shared/--private",
            help="One set of sessions for all, or one per user or browser. Default: shared on "
            "this computer, private elsewhere.",
        ),
    ] = None,
    keep_days: Annotated[
        int,
        typer.Option(
            min=0,
            help="Delete a browser's private sessions after this many days without use. 0 never "
            "does. Sessions of logins and shared ones are always kept.",
        ),
    ] = 30,
    mcp: Annotated[bool, typer.Option("--mcp", help="Also serve tools over MCP.")] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
) -> None:
    """Watch a model read, remember and generate, in a browser.

    Needs the extra `demo`.
    """
    import_module(APP).run(
        store,
        model=model,
        device=device,
        host=host,
        port=port,
        root_path=root_path,
        auth=[_login(given) for given in auth or ()],
        allow_hosts=allow_host or (),
        shared=shared,
        keep_days=keep_days,
        mcp=mcp,
        browser=browser,
        say=note,
    )


def _login(given: str) -> tuple[str, str]:
    name, colon, password = given.partition(":")
    if not (name and colon and password):
        raise ValueError("--auth; allowed: NAME:PASSWORD, neither of them empty")
    return name, password
