"""docs/server.md is true: its commands and its Python run against a server."""

import asyncio
import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.server.app import build
from apps.server.lifecycle import Server
from apps.server.service import Service
from apps.server.settings import Settings
from streamlm.checkpoints.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, chat: Checkpoint) -> Iterator[str]:
    """Of a server in a thread, whose model chats."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "spool").mkdir()
    settings = Settings(store=str(folder / "sessions"), spool=str(folder / "spool"), rows=4)
    service = Service(chat, settings)
    listening = socket.create_server(("127.0.0.1", 0))
    servers: list[Server] = []

    async def serve() -> None:
        servers.append(Server(build(service), service))
        await servers[0].serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not servers:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def told(script: str, address: str, chat: Checkpoint) -> str:
    """A script for the tests' server and its model."""
    name = chat.name.rpartition("/")[2]
    return script.replace("http://127.0.0.1:8000", address).replace("smollm2", name)


def ended(command: list[str], folder: Path) -> str:
    run = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_shell(address: str, chat: Checkpoint, tmp_path: Path, prose: Callable[..., str]) -> None:
    (tmp_path / "moby.txt").write_text(prose(200), encoding="utf-8")
    (script,) = blocks("bash")
    failing = f'set -e\ncurl() {{ command curl -S --fail-with-body "$@"; }}\n{script}'
    out = ended(["bash", "-c", told(failing, address, chat)], tmp_path)
    for part in ('"text_completion"', '"done": true', "data: [DONE]", '"moby@side"', "per_byte"):
        assert part in out


@pytest.mark.parametrize("package", ["openai", "langchain_openai"])
def test_python(package: str, address: str, chat: Checkpoint, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    (script,) = [block for block in blocks("python") if f"from {package} " in block]
    (tmp_path / "example.py").write_text(told(script, address, chat), encoding="utf-8")
    assert ended([sys.executable, "example.py"], tmp_path).strip()
