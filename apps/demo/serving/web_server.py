"""The web server: listens at once, in a thread of its own, and takes up the demo when it is there.

Importing Gradio takes seconds. Until then every request is answered with the startup page.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

import uvicorn

from apps.demo.serving.startup_page import StartupPage

END = 1  # seconds that open streams have at the end; jobs have saved before


class WebServer:
    """Serves an ASGI application that may come later.

    Args:
        port: 0 chooses a free one.
        outer: wraps what is served from the beginning, the startup page included.

    Attributes:
        address: the URL on this computer.

    Raises:
        ValueError: the port is in use, or the host is not an address of this machine.
    """

    def __init__(
        self, host: str, port: int, *, outer: Callable[[Any], Any] = lambda app: app
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise ValueError(f"port {port} on {host}: {error}; allowed: another --port") from None
        self.host, self.port = host, int(self._socket.getsockname()[1])
        shown = "localhost" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        self._page = StartupPage()
        config = uvicorn.Config(
            outer(self._page),
            lifespan="off",
            log_level="warning",
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=END,
        )
        self._server = uvicorn.Server(config)
        self._lives: list[asyncio.Task[None]] = []
        self._running: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._main, name="streamlm web", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        self._running.set_result(asyncio.get_running_loop())
        await self._server.serve(sockets=[self._socket])
        self._closing.set()
        await asyncio.gather(*self._lives)

    def mount(self, app: Any) -> None:
        """Serve an application from now on, within its lifespan.

        Args:
            app: a Starlette application.
        """
        started: Future[None] = Future()

        async def live() -> None:
            try:
                async with app.router.lifespan_context(app):
                    self._page.replace(app)
                    started.set_result(None)
                    await self._closing.wait()
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        async def begin() -> None:
            self._lives.append(asyncio.create_task(live()))

        asyncio.run_coroutine_threadsafe(begin(), self._running.result()).result()
        started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5 + END)
        self._socket.close()
