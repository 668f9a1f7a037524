"""`streamlm serve` in its own process."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60


class ServerProcess:
    """A server on a free port of this computer.

    Attributes:
        address: http://…; first: the line that it printed.
    """

    def __init__(self, store: Path, model: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "streamlm", "serve", "--store", str(store)]
        command += ["--model", str(model), "--device", "cpu", "--port", str(port), *options]
        self.log = store.parent / f"{store.name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=store.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        found = re.search(r"(http://\S+:\d+)/v1 ", self.first)
        assert found is not None, self.log.read_text()
        self.address = found[1]

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """The JSON that is answered; a body that is bytes is sent as it stands."""
        with self.open(path, body, method=method) as answer:
            return json.load(answer)

    def open(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """The answer, to read while it comes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        return urllib.request.urlopen(request, timeout=TIMEOUT)

    def events(self, path: str, body: Any) -> Iterator[Any]:
        """The values of server-sent events while they come."""
        with self.open(path, body) as answer:
            for line in answer:
                text = line.decode().strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    yield json.loads(text.removeprefix("data: "))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status."""
        assert self.process.stdout is not None
        status = self.process.wait(TIMEOUT)
        self.process.stdout.close()
        return status

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
