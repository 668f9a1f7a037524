"""The command `streamlm demo`: serve until interrupted, then save the running jobs."""

import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from apps.demo.serving.fast_import import fast_gradio_import
from apps.hosts import LOOPBACK, Hosts
from apps.scratch import scratch_folder


def run(
    store: str = "sessions",
    *,
    model: str | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    root_path: str | None = None,
    auth: Sequence[tuple[str, str]] = (),
    allow_hosts: Sequence[str] = (),
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
        allow_hosts: names, beside this computer's, by which browsers may call the server.
        shared: whether all visitors share one shelf. None means yes on this computer without a
            login; otherwise each user has their own, or each browser without a login.
        keep_days: days after which an unused shelf of a browser expires; 0 disables expiry.
        mcp: also serve the API as tools for MCP clients.
        browser: open the page in a browser.
        results: a folder with results of `streamlm compare`.
        say: reports the address.

    Raises:
        ValueError: gradio is not installed, the port is taken, one of `allow_hosts` is no name, or
            both `mcp` and `auth` are given.
    """
    if mcp and auth:
        raise ValueError("--mcp with --auth; allowed: only one, because MCP clients cannot log in")
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'streamlm[demo]'")
    behind = urlsplit(root_path or "").hostname  # of a root path that is a whole URL
    hosts = Hosts.of(host, [*allow_hosts, *([behind] if behind else [])])

    def outer(inner: Any) -> Any:
        from apps.demo.serving.guard import Guard
        from apps.demo.serving.login import Login

        return Guard(Login(inner, users=auth) if auth else inner, hosts=hosts)

    from apps.demo.serving.web_server import WebServer  # needs uvicorn, which comes with gradio

    with (
        scratch_folder("streamlm-demo-") as files,
        WebServer(host, port, outer=outer) as server,
    ):
        say(f"starting at {server.address}")
        if browser:
            import webbrowser

            webbrowser.open(server.address)
        # Gradio reads these on import.
        os.environ["GRADIO_TEMP_DIR"] = files
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            with fast_gradio_import(mcp=mcp):
                from apps.demo.app_state import AppState
                from apps.demo.serving.server import application
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
        server.mount(application(app, root_path=root_path, login=bool(auth), mcp=mcp))
        say(f"the demo is at {server.address} (Ctrl-C ends it)")
        if app.browsers is not None:
            app.browsers.start_cleanup()
        if mcp:
            say(f"MCP clients find its tools at {server.address}gradio_api/mcp/")
        try:
            while True:
                time.sleep(1)  # a signal that another thread was given ends no sleep
        finally:
            app.jobs.shut_down()  # they save what they have read


def sharing_mode(
    host: str, *, auth: bool, shared: bool | None
) -> Literal["shared", "user", "browser"]:
    """Which visitors share a shelf; see `run`."""
    if shared or (shared is None and not auth and host in LOOPBACK):
        return "shared"
    return "user" if auth else "browser"
