"""A local S3 server for tests: it counts requests, drops responses, and can be unreachable."""

import logging
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from moto.server import ThreadedMotoServer

Environ = dict[str, Any]
KEY, SECRET = "AKIAEXAMPLE", "a-secret-that-nobody-shows"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    create_only: bool


class S3Server:
    """moto's emulation of Amazon S3, on the loopback interface.

    Attributes:
        requests: the requests since `clear`.
        unheard: whether a request is dropped before it reaches the storage.
        unanswered: whether the response to a request is dropped.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[Request] = []
        self.clear()
        self._one_by_one = threading.Lock()
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        server = self._moto._server
        assert server is not None
        self._moto_app, server.app = server.app, self
        self._apps: dict[bool, Any] = {}
        self.url = "http://{}:{}".format(*self._moto.get_host_and_port())

    def clear(self) -> None:
        self.requests.clear()
        self.unheard: Callable[[Request], bool] = lambda request: False
        self.unanswered: Callable[[Request], bool] = lambda request: False

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("HTTP_IF_NONE_MATCH") == "*",
        )
        self.requests.append(request)
        if self.unheard(request):
            return self._hang_up(environ)
        # A conditional put is atomic in S3, but not in moto.
        with self._one_by_one:
            answer = self._app(environ)(environ, start_response)
        return self._hang_up(environ) if self.unanswered(request) else answer

    def _app(self, environ: Environ) -> Any:
        """moto's emulation of what a request asks; moto finds it anew for each, which is slow."""
        own = environ["PATH_INFO"].startswith("/moto-api")
        if own not in self._apps:
            self._apps[own] = self._moto_app.get_application(environ)
        return self._apps[own]

    def _hang_up(self, environ: Environ) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []

    def counted(self) -> Counter[str]:
        return Counter(request.method for request in self.requests)

    def make_bucket(self, name: str) -> None:
        self._ask("PUT", f"/{name}")

    def authenticate(self, *, check: bool) -> None:
        """Whether to check credentials; all of them are invalid."""
        self._ask("POST", "/moto-api/reset-auth", b"0" if check else b"inf")

    def _ask(self, method: str, path: str, data: bytes | None = None) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            answer.read()

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def stop(self) -> None:
        self._moto.stop()
        assert self._moto._server is not None
        self._moto._server.server_close()
