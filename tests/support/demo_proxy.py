"""A reverse proxy that forwards everything under a path to the demo's server."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@contextmanager
def proxy(target: str, prefix: str) -> Iterator[str]:
    """Serve `target` under a path; yields the URL. Requests for other paths get a 404."""
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(base_url=target, timeout=None)

    async def forward(request: Request) -> StreamingResponse:
        upstream = client.build_request(
            request.method,
            httpx.URL(path="/" + request.path_params["rest"], query=request.url.query.encode()),
            headers=[pair for pair in request.headers.items() if pair[0] not in HOP],
            content=request.stream() if request.method == "POST" else None,
        )
        reply = await client.send(upstream, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in reply.aiter_raw():
                    yield piece
            finally:
                await reply.aclose()

        response = StreamingResponse(body(), reply.status_code)
        response.raw_headers = [
            (name.lower().encode(), value.encode())
            for name, value in reply.headers.multi_items()
            if name.lower() not in HOP
        ]
        return response

    @asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        yield
        await client.aclose()

    methods = ["GET", "HEAD", "POST"]
    routes = [Route(f"{prefix}/{{rest:path}}", forward, methods=methods)]
    config = uvicorn.Config(
        Starlette(routes=routes, lifespan=life),
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}{prefix}/"
    finally:
        server.should_exit = True
        thread.join()
