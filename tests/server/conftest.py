"""Servers for tests: on a tiny model, in this process, and asked through ASGI."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs starlette: pip install 'streamlm[server]'")
pytest.importorskip("prometheus_client", reason="needs it: pip install 'streamlm[server]'")

from starlette.testclient import TestClient

from apps.server.app import build
from apps.server.service import Service
from apps.server.settings import Settings
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.chats import chat_folder, load_chat

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture
def serve(tmp_path: Path, tiny: Checkpoint) -> Iterator[Callable[..., TestClient]]:
    """Starts a server, and returns a client of it; its service is `client.app.state.service`."""
    with ExitStack() as stack:

        def serve(checkpoint: Checkpoint = tiny, **settings: Any) -> TestClient:
            spool = tmp_path / "spool"
            spool.mkdir(exist_ok=True)
            chosen: dict[str, Any] = {
                **{"store": str(tmp_path / "sessions"), "spool": str(spool), "rows": 4},
                **settings,
            }
            service = Service(checkpoint, Settings(**chosen))
            client = TestClient(build(service), base_url=LOCAL, raise_server_exceptions=False)
            return stack.enter_context(client)

        yield serve


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_chat(chat_folder(tmp_path_factory.mktemp("chat")))


@pytest.fixture
def talk(serve: Callable[..., TestClient], chat: Checkpoint) -> TestClient:
    """A client of a server whose model chats."""
    return serve(chat)
