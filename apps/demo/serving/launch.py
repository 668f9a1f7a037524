"""`streamlm demo`: a place for files, serving until told to end, and saving what is under way."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

from apps.demo.serving.fast_import import quickly
from apps.demo.serving.startup_page import Starting

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(
    store: str = "sessions",
    *,
    model: str = "books",
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    root_path: str | None = None,
    auth: Sequence[tuple[str, str]] = (),
    shared: bool | None = None,
    keep_days: int = 30,
    mcp: bool = False,
    browser: bool = False,
    results: str = "benchmarks/results",
    say: Callable[[str], None] = print,
) -> None:
    """Serve the demo until Ctrl-C, or until the process is told to end.

    Args:
        store: the folder of sessions, or a URL of object storage.
        shared: everybody sees the same sessions. By default they do on this computer; elsewhere
            each user has their own, or each browser, where nobody logs in.
        keep_days: where each browser has its own, those not used for so long are removed; 0 keeps
            them for ever.
        say: tells where the demo is.

    Raises:
        ValueError: gradio is not installed, the port is taken, or both `mcp` and `auth` are given.
    """
    if mcp and auth:
        raise ValueError("--mcp with --auth; allowed: one of them, for MCP clients cannot log in")
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'streamlm[demo]'")
    with (
        Starting(host, port) as starting,
        tempfile.TemporaryDirectory(prefix="streamlm-demo-") as files,
    ):
        say(f"starting at {starting.address}")
        if browser:
            import webbrowser

            webbrowser.open(starting.address)
        # Gradio reads these when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = files
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            with quickly(mcp=mcp):
                from apps.demo.app_state import Desk
                from apps.demo.serving.server import serve
        except ModuleNotFoundError as error:
            raise ValueError(f"the demo needs {error.name}: pip install 'streamlm[demo]'") from None
        whose = whose_shelves(host, auth=bool(auth), shared=shared)
        desk = Desk(
            store,
            files=files,
            model=model,
            device=device,
            whose=whose,
            keep_days=keep_days,
            results=results,
        )
        page = serve(desk, starting, root_path=root_path, auth=auth, mcp=mcp)
        say(f"the demo is at {starting.address} (Ctrl-C ends it)")
        if desk.browsers is not None:
            desk.browsers.keep_clear()
        if mcp:
            say(f"its tools for MCP clients are at {starting.address}gradio_api/mcp/")
        try:
            while True:
                time.sleep(3600)
        finally:
            desk.jobs.end()  # saves what is being read
            page.close(verbose=False)


def whose_shelves(
    host: str, *, auth: bool, shared: bool | None
) -> Literal["one", "user", "browser"]:
    """Who shares sessions with whom; see `run`."""
    if shared or (shared is None and not auth and host in LOOPBACK):
        return "one"
    return "user" if auth else "browser"
