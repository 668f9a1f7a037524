"""The command `streamlm demo`: serve until interrupted, then save the running jobs."""

import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

from apps.demo.serving.fast_import import fast_gradio_import
from apps.demo.serving.startup_page import StartupServer
from apps.scratch import scratch_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(
    store: str = "sessions",
    *,
    model: str | None = None,
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
    """Serve the demo until Ctrl-C or SIGTERM.

    Args:
        store: the folder of sessions, or a URL of object storage.
        model: of new sessions, see `load_checkpoint`; None for the best one that is here.
        device: see `load_checkpoint`.
        root_path: the path under which a proxy serves the demo.
        auth: names and passwords; empty for no login.
        shared: whether all visitors share one shelf. None means yes on this computer without a
            login; otherwise each user has their own, or each browser without a login.
        keep_days: days after which an unused shelf of a browser expires; 0 disables expiry.
        mcp: also serve the API as tools for MCP clients.
        browser: open the page in a browser.
        results: a folder with results of `streamlm compare`.
        say: reports the address.

    Raises:
        ValueError: gradio is not installed, the port is taken, or both `mcp` and `auth` are given.
    """
    if mcp and auth:
        raise ValueError("--mcp with --auth; allowed: only one, because MCP clients cannot log in")
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'streamlm[demo]'")
    with (
        StartupServer(host, port) as startup,
        scratch_folder("streamlm-demo-") as files,
    ):
        say(f"starting at {startup.address}")
        if browser:
            import webbrowser

            webbrowser.open(startup.address)
        # Gradio reads these on import.
        os.environ["GRADIO_TEMP_DIR"] = files
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            with fast_gradio_import(mcp=mcp):
                from apps.demo.app_state import AppState
                from apps.demo.serving.server import serve
        except ModuleNotFoundError as error:
            raise ValueError(f"the demo needs {error.name}: pip install 'streamlm[demo]'") from None
        app = AppState(
            store,
            files=files,
            model=model,
            device=device,
            sharing=sharing_mode(host, auth=bool(auth), shared=shared),
            keep_days=keep_days,
            results=results,
        )
        page = serve(app, startup, root_path=root_path, auth=auth, mcp=mcp)
        say(f"the demo is at {startup.address} (Ctrl-C ends it)")
        if app.browsers is not None:
            app.browsers.start_cleanup()
        if mcp:
            say(f"MCP clients find its tools at {startup.address}gradio_api/mcp/")
        try:
            while True:
                time.sleep(1)  # a signal that another thread was given ends no sleep
        finally:
            app.jobs.shut_down()  # they save what they have read
            page.close(verbose=False)


def sharing_mode(
    host: str, *, auth: bool, shared: bool | None
) -> Literal["shared", "user", "browser"]:
    """Which visitors share a shelf; see `run`."""
    if shared or (shared is None and not auth and host in LOOPBACK):
        return "shared"
    return "user" if auth else "browser"
