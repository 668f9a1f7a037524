"""Ray Serve: replicas of the server on one store, each session kept on one of them.

    serve run deploy.ray_serve:app model=smollm2 store=s3://bucket/sessions replicas=4

A request names its session in the header `serve_multiplexed_model_id` too, and Ray sends it to a
replica that has answered for this session before. That is an effort, not a promise: replicas end,
and new ones begin. Two of them that write to one session are kept apart by the store: the later
commit is a conflict, its request gets 409, and the next one reads what the other has saved.
"""

import tempfile
from typing import Any

from ray import serve

from apps.server.app import build
from apps.server.keys import Keys
from apps.server.service import Service
from apps.server.settings import MIB, Settings
from streamlm.checkpoints.checkpoint import load_checkpoint

HELD = 4096  # sessions that are sent to one replica, the least recently used not counted


class Door:
    """The ASGI application of a replica; unlike the server's own, it can be sent to one."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or the messages at the beginning and the end of a replica."""
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        replica = serve.get_replica_context().servable_object
        if name := serve.get_multiplexed_model_id():
            await replica.hold(name)
        await replica.answer(scope, receive, send)


@serve.deployment(max_ongoing_requests=64)
@serve.ingress(Door())
class Replica:
    """One model and its engine, and the sessions that this replica has open.

    Args:
        model, device: see `load_checkpoint`.
        store: a URL of object storage, or a folder that all machines share.
        api_key_file: see `Keys.read`; None lets in whoever reaches the proxy.
        rows: sessions that write at once; session_mib: memory for open sessions.
    """

    def __init__(
        self,
        model: str,
        store: str,
        device: str,
        api_key_file: str | None,
        rows: int,
        session_mib: int,
    ) -> None:
        self._spool = tempfile.TemporaryDirectory(prefix="streamlm-replica-")
        settings = Settings(
            store=store,
            spool=self._spool.name,
            keys=None if api_key_file is None else Keys.read(api_key_file),
            rows=rows,
            session_bytes=session_mib * MIB,
        )
        self._service = Service(load_checkpoint(model, device=device), settings)
        self.answer = build(self._service)

    @serve.multiplexed(max_num_models_per_replica=HELD)
    async def hold(self, name: str) -> str:
        """Tell Ray that this replica answers for a session; it is opened by the request."""
        return name

    def check_health(self) -> None:
        """Raise RuntimeError if no requests are taken, so that Ray begins another replica."""
        if not self._service.ready:
            raise RuntimeError("the engine of this replica has ended")

    def __del__(self) -> None:
        self._service.close()


def app(arguments: dict[str, str]) -> serve.Application:
    """The application for `serve run`; its arguments are those of `Replica`, `replicas`, `gpus`."""
    defaults = {"model": "books", "store": "sessions", "device": "auto", "api_key_file": ""}
    defaults |= {"rows": "16", "session_mib": "1024", "replicas": "1", "gpus": "0"}
    if unknown := arguments.keys() - defaults:
        raise ValueError(f"{', '.join(unknown)}; allowed: {', '.join(defaults)}")
    given = {**defaults, **arguments}
    chosen = Replica.options(
        num_replicas=int(given["replicas"]), ray_actor_options={"num_gpus": float(given["gpus"])}
    )
    return chosen.bind(
        given["model"],
        given["store"],
        given["device"],
        given["api_key_file"] or None,
        int(given["rows"]),
        int(given["session_mib"]),
    )
