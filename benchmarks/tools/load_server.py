"""A server that is killed and started again on the same port, and clients that wait for it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

TIMEOUT = 120.0  # seconds


class ServerDown(Exception):
    """The server did not answer: it was killed, or is busy or starting."""


DOWN = ServerDown


class LoadServer:
    """`streamlm serve` with a key for each owner.

    Attributes:
        kills: how often it was killed.
    """

    def __init__(self, store: Path, model: str, *, rows: int, owners: Sequence[str]) -> None:
        self._keys = {owner: f"{owner}-{'k' * 16}" for owner in owners}
        keys = store.parent / "keys.txt"
        keys.write_text("".join(f"{owner} {key}\n" for owner, key in self._keys.items()))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "streamlm", "serve", "--store", str(store)]
        self._command += ["--model", str(model), "--device", "cpu", "--rows", str(rows)]
        self._command += ["--port", str(self._port), "--api-key-file", str(keys)]
        self._log = store.parent / "server.log"
        self.kills = 0
        self._up = threading.Event()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _start(self) -> None:
        root = Path(__file__).resolve().parents[2]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | {"PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not re.search(r"http://\S+/v1 ", first):
            raise RuntimeError(self._log.read_text())
        self._up.set()

    def kill(self) -> None:
        """SIGKILL, and start again."""
        self._up.clear()
        self.kills += 1
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._start()

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(TIMEOUT)

    def client(self, owner: str) -> "Client":
        """A client with the key of an owner."""
        return Client(f"http://127.0.0.1:{self._port}", owner, self._keys[owner], self._up)


class Client:
    """Asks a server that may be down."""

    def __init__(self, address: str, owner: str, key: str, up: threading.Event) -> None:
        self.owner = owner
        self._address, self._key, self._up = address, key, up

    def wait(self) -> None:
        """Until the server has been started again."""
        self._up.wait(TIMEOUT)
        time.sleep(0.05)

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that is answered.

        Raises:
            ServerDown: none was, or the server is busy.
            RuntimeError: an error that is the client's fault.
        """
        try:
            with self._open(path, body) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._down(path, error) from None

    def hang_up(self, fields: Any) -> None:
        """Begin a stream, and hang up behind its first event."""
        try:
            with self._open("/v1/completions", fields) as answer:
                answer.readline()
        except (OSError, http.client.HTTPException) as error:
            raise self._down("/v1/completions", error) from None

    def _open(self, path: str, body: Any) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self._address + path, data, headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT)

    def _down(self, path: str, error: Exception) -> Exception:
        if isinstance(error, urllib.error.HTTPError):
            text = error.read().decode(errors="replace")
            if error.code not in (503,):
                return RuntimeError(f"{path}: {error.code} {text}")
        return ServerDown(f"{path}: {error}")
