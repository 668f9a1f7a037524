"""/health, /ready, /metrics and /v1/models."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apps.server.errors import RETRY_AFTER
from apps.server.service import Service, service_of


async def health(request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Requests are taken."""
    if service_of(request).ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "stopping"}, 503, {"Retry-After": str(RETRY_AFTER)})


async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """The one model that is served."""
    return JSONResponse({"object": "list", "data": [_model(service_of(request))]})


async def model(request: Request) -> Response:
    """The model of a name."""
    service = service_of(request)
    service.check_model(request.path_params["name"])
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "streamlm",
    }


ROUTES = [
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
    Route("/v1/models", models),
    Route("/v1/models/{name}", model),
]
