"""The command `streamlm serve`: load the model, say where the server listens, serve."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from typing import Any

from apps.hosts import LOOPBACK, Hosts
from apps.scratch import scratch_folder
from apps.server.keys import Keys
from apps.server.settings import MIB, Settings


def run(
    store: str = "sessions",
    *,
    model: str = "books",
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    rows: int = 16,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | None = None,
    without_keys: bool = False,
    allow_hosts: Sequence[str] = (),
    max_waiting: int = 64,
    session_mib: int = 1024,
    max_body_mib: int = 4096,
    grace: float = 30.0,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        store: the folder of sessions, or a URL of object storage.
        model, device, settings: see `load_checkpoint`.
        api_key_file: see `Keys.read`.
        without_keys: listen to other computers without keys.
        allow_hosts: names, beside this computer's, by which a server without keys may be called.
        session_mib: memory for open sessions; max_body_mib: the longest text to feed.
        rows, max_waiting, grace: see `Settings`.
        say: reports the address, in one line.

    Raises:
        ValueError: an option is not allowed, or a package is missing.
        OSError: the port is taken, or the file of keys cannot be read.
    """
    missing = [
        name for name in ("starlette", "uvicorn", "prometheus_client") if not find_spec(name)
    ]
    if missing:
        raise ValueError(f"the server needs {missing[0]}: pip install 'streamlm[server]'")
    keys = Keys.read(api_key_file) if api_key_file is not None else None
    if keys is None and host not in LOOPBACK and not without_keys:
        raise ValueError(
            f"--host {host} without keys: whoever reaches this computer could read every session; "
            "allowed: with --api-key-file, or with --without-keys"
        )
    with (
        closing(_listen(host, port)) as listening,
        scratch_folder("streamlm-server-") as spool,
    ):
        from apps.server.app import build
        from apps.server.lifecycle import Server
        from apps.server.logs import configure
        from apps.server.service import Service
        from streamlm.checkpoints.checkpoint import load_checkpoint  # needs torch

        chosen = Settings(
            store=store,
            spool=spool,
            keys=keys,
            hosts=Hosts.of(host, allow_hosts),
            rows=rows,
            max_waiting=max_waiting,
            session_bytes=session_mib * MIB,
            max_body=max_body_mib * MIB,
            grace=grace,
        )
        configure()
        checkpoint = load_checkpoint(model, device=device, settings=dict(settings or {}))
        service = Service(checkpoint, chosen)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        say(f"streamlm serves {service.name} at {address}/v1 (Ctrl-C ends it)")
        asyncio.run(_serve(Server, build(service), service, listening))


async def _serve(server: Any, app: Any, service: Any, listening: socket.socket) -> None:
    await server(app, service).serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
