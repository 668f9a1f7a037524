"""The startup page: answers on the port while the demo is still starting.

Importing Gradio takes seconds. Until then, browsers get a page that reloads into the demo by
itself, and programs get a 503 with Retry-After. The listening socket is then handed over, so that
no connection is refused: requests in between wait some milliseconds.
"""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Self

PAGE = Path(__file__).parent / "startup_page.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
RETRY_AFTER = 2  # seconds after which a program should try again
MAX_BODY = 1 << 20  # bytes of a request to read, without which its sender misses the response


class StartupServer:
    """Listens on a port and responds to every request that the demo is starting.

    Args:
        port: 0 chooses a free one.

    Attributes:
        socket: the listening socket; address: the URL on this computer.

    Raises:
        ValueError: the port is in use, or the host is not an address of this machine.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise ValueError(f"port {port} on {host}: {error}; allowed: another --port") from None
        self.host, self.socket = host, self._server.socket
        self.port: int = self.socket.getsockname()[1]
        shown = "localhost" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        loop = threading.Thread(
            target=self._server.serve_forever, args=[0.05], name="streamlm startup", daemon=True
        )
        loop.start()

    def hand_over(self) -> socket.socket:
        """Stop responding and return the socket, still listening, for another server to use."""
        self._server.shutdown()
        self._server.started.set()
        return self.socket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.socket.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.started = threading.Event()
        self.page = PAGE.read_bytes()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's does a DNS lookup


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds until an idle connection is closed

    def respond(self) -> None:
        self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MAX_BODY))
        if self.headers.get("X-Wait"):  # sent by startup_page.html
            self.server.started.wait()
            self.send_response(204)
            self.end_headers()
            return
        browser = "text/html" in self.headers.get("Accept", "")
        body = self.server.page if browser else b'{"error": "The demo is starting."}\n'
        self.send_response(503)
        self.send_header("Content-Type", "text/html" if browser else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Retry-After", str(RETRY_AFTER))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = respond

    def log_message(self, *_: object) -> None:
        pass
