"""`streamlm demo`: watch a model read, remember and write, in a browser."""

from importlib import import_module
from typing import Annotated

import typer

from streamlm.cli.display import note
from streamlm.cli.options import Device, Model, place

APP = "apps.demo.serving.launch"  # imported when called: apps stand above this package


def demo(
    store: Annotated[
        str,
        typer.Option(
            "--store",
            "--sessions",
            metavar="FOLDER|URL",
            callback=place,
            help="Where the sessions are.",
        ),
    ] = "sessions",
    model: Model = "books",
    device: Device = "auto",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    root_path: Annotated[
        str | None, typer.Option(help="The path that a proxy serves it under.")
    ] = None,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PASSWORD",
            envvar="STREAMLM_DEMO_AUTH",
            help="Who may log in; each has sessions of their own. Several: several times, or with "
            "spaces between in the variable, which nobody sees in a list of processes.",
        ),
    ] = None,
    shared: Annotated[
        bool | None,
        typer.Option(
            "--shared/--private",
            help="One shelf of sessions for all, or one for each user or browser. Default: shared "
            "on this computer, private elsewhere.",
        ),
    ] = None,
    keep_days: Annotated[
        int,
        typer.Option(
            min=0,
            help="Where each browser has its own shelf: remove those that nobody used for so long. "
            "0 keeps them for ever; users' and shared ones always stay.",
        ),
    ] = 30,
    mcp: Annotated[bool, typer.Option("--mcp", help="Also serve as tools, over MCP.")] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Watch a model read, remember and write, in a browser. Needs the extra `demo`."""
    import_module(APP).run(
        store,
        model=model,
        device=device,
        host=host,
        port=port,
        root_path=root_path,
        auth=[_login(given) for given in auth or ()],
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
