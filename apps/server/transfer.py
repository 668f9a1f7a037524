"""/sessions/NAME/export and /import: a session with its history as one file."""

import tempfile
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from apps.server.bodies import spooled
from apps.server.service import service_of
from apps.server.sessions import check_free, shown
from apps.server.shelves import Shelf, aside
from memory_store import Corrupt, NotFound, UnsupportedSchema, places
from streamlm.sessions.shelf import free_place, place_of


async def export(request: Request) -> Response:
    """What is saved of a session, as a Zip file."""
    service, name = service_of(request), request.path_params["name"]
    shelf = service.shelf(request)
    folder = tempfile.TemporaryDirectory(dir=service.settings.spool)
    try:
        path = await aside(_export, shelf, name, folder.name)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(
        path,
        media_type="application/zip",
        filename=f"{name}.zip",
        background=BackgroundTask(folder.cleanup),
    )


def _export(shelf: Shelf, name: str, folder: str) -> Path:
    path = Path(folder) / "export.zip"
    places.export(place_of(shelf.folder, name), path)
    return path


async def import_(request: Request) -> Response:
    """Begin a session with an exported one; every checksum in it is verified."""
    shelf, name = service_of(request).shelf(request), request.path_params["name"]
    await aside(check_free, shelf, name)
    async with spooled(request) as path:
        await aside(_import, shelf, name, path)
    return JSONResponse(await aside(shown, shelf, name), 201)


def _import(shelf: Shelf, name: str, path: Path) -> None:
    shelf.make()
    try:
        places.import_(path, free_place(shelf.folder, name))
    except (Corrupt, NotFound, UnsupportedSchema) as error:  # what was sent, not what is here
        raise ValueError(str(error)) from None


ROUTES = [
    Route("/sessions/{name}/export", export),
    Route("/sessions/{name}/import", import_, methods=["POST"]),
]
