"""/sessions: list, begin, show, fork, rewind and delete the sessions of a shelf."""

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apps.server.bodies import read_fields
from apps.server.errors import ApiError
from apps.server.service import service_of
from apps.server.shelves import Shelf, aside
from apps.server.sse import unless_hung_up
from memory_store import Ref, StoreError, places
from streamlm.sessions.one_thread import InUse
from streamlm.sessions.session import Session
from streamlm.sessions.shelf import branches, locate
from streamlm.units import parse_time

MOST_POSITION = 1 << 62
MOST_IDS = 4096  # of a part of a session that is shown


async def list_sessions(request: Request) -> Response:
    """All sessions and branches; a damaged one is listed with its error."""
    shelf = service_of(request).shelf(request)
    return JSONResponse({"sessions": await aside(_list, shelf)})


def _list(shelf: Shelf) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in places.session_names(shelf.folder):
        try:
            store = places.open_store(places.named(shelf.folder, name))
            rows += [vars(branch) for branch in branches(store, name)]
        except StoreError as error:
            rows.append({"name": name, "error": shelf.shown(str(error))})
    return rows


async def create(request: Request) -> Response:
    """Begin a session, of a given name or of a new one."""
    service = service_of(request)
    fields = await read_fields(request)
    name = fields.text("name") or f"session-{secrets.token_hex(6)}"
    fields.end()
    shelf = service.shelf(request)
    await aside(check_free, shelf, name)
    async with shelf.use(name, create=True) as session:
        await service.call(session, Session.save)
    return JSONResponse(await aside(shown, shelf, name), 201)


def check_free(shelf: Shelf, name: str) -> None:
    """Raises ValueError: not the name of a session. InUse: there is one."""
    place, _ = locate(shelf.folder, name)
    if "@" in name:
        raise ApiError(
            400, f"name = {name!r}: a branch; allowed: a session, branches are forked", param="name"
        )
    if places.occupied(place):
        raise InUse(f"session {name!r} exists already; allowed: a new name")


async def show(request: Request) -> Response:
    """What is saved of a session."""
    shelf = service_of(request).shelf(request)
    return JSONResponse(await aside(shown, shelf, request.path_params["name"]))


def shown(shelf: Shelf, name: str) -> dict[str, Any]:
    """What is saved of a session; errors as of `Shelf.check`."""
    store, branch = shelf.check(name)
    refs = store.refs(branch)
    head, before = refs[-1], refs[-2] if len(refs) > 1 else None
    return {
        "name": name.removesuffix("@main"),
        "branch": branch,
        "branches": store.branches(),
        "position": head.position,
        "saved": _snapshot(head),
        "parent": None if before is None else _snapshot(before),
        "snapshots": len(refs),
        "bytes": store.size(),
    }


def _snapshot(ref: Ref) -> dict[str, Any]:
    return {
        "snapshot": ref.seq,
        "position": ref.position,
        "commit": ref.commit.id,
        "created": ref.created,
    }


async def tokens(request: Request) -> Response:
    """A part of the saved stream: ids and their text."""
    service = service_of(request)
    shelf, name = service.shelf(request), request.path_params["name"]
    store, branch = await aside(shelf.check, name)
    head = await aside(store.head, branch)
    assert head is not None
    stop = _query(request, "stop", head.position, most=head.position)
    start = _query(request, "start", max(0, stop - MOST_IDS), most=stop)
    if stop - start > MOST_IDS:
        raise ApiError(
            400, f"start = {start}; allowed: at most {MOST_IDS} tokens at once", param="start"
        )
    ids = await aside(store.tokens, head, start, stop)
    text = service.checkpoint.tokenizer.decode(ids)
    return JSONResponse({"start": start, "stop": stop, "ids": ids.tolist(), "text": text})


def _query(request: Request, name: str, default: int, *, most: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isdecimal() or int(given) > most:
        raise ApiError(400, f"{name} = {given!r:.40}; allowed: 0 to {most}", param=name)
    return int(given)


async def memory(request: Request) -> Response:
    """What the model still remembers of a session, slot by slot."""
    service = service_of(request)

    async def work() -> dict[str, Any]:
        async with service.shelf(request).use(request.path_params["name"]) as session:
            report = await service.call(session, lambda session: session.memory_report())
            return dict(report.to_dict())

    return JSONResponse(await unless_hung_up(request.receive, work))


async def fork(request: Request) -> Response:
    """Begin a branch, at the newest position or an earlier one."""
    service = service_of(request)
    fields, name = await read_fields(request), request.path_params["name"]
    branch = fields.text("branch") or f"fork-{secrets.token_hex(6)}"
    tokens = fields.optional_whole("tokens", most=MOST_POSITION)
    fields.end()
    shelf = service.shelf(request)
    forked = f"{name.partition('@')[0]}@{branch}"
    locate(shelf.folder, forked)

    def function(session: Session) -> None:
        if branch in session.live.require_store("fork").store.branches():
            raise InUse(f"session {forked!r} exists already; allowed: a new branch")
        session.fork(branch, tokens=tokens).close()

    async with shelf.use(name) as session:
        await service.call(session, function)
    return JSONResponse(await aside(shown, shelf, forked), 201)


async def rewind(request: Request) -> Response:
    """Return to a position, a snapshot or a time. The history is kept."""
    service = service_of(request)
    fields, name = await read_fields(request), request.path_params["name"]
    to = fields.optional_whole("to", most=MOST_POSITION)
    by = fields.optional_whole("by", most=MOST_POSITION)
    snapshot = fields.optional_whole("snapshot", most=MOST_POSITION)
    given = fields.take("time")
    fields.end()
    then = given if given is None or isinstance(given, (int, float)) else parse_time(str(given))
    if sum(goal is not None for goal in (to, by, snapshot, then)) != 1:
        raise ApiError(400, "allowed: one of to, by, snapshot and time", param="to")
    shelf = service.shelf(request)
    async with shelf.use(name) as session:
        await service.call(
            session, lambda session: session.rewind(to=to, by=by, snapshot=snapshot, time=then)
        )
    return JSONResponse(await aside(shown, shelf, name))


async def delete(request: Request) -> Response:
    """Delete a session with all its branches."""
    shelf, name = service_of(request).shelf(request), request.path_params["name"]
    await aside(shelf.delete, name)
    return JSONResponse({"name": name, "deleted": True})


ROUTES = [
    Route("/sessions", list_sessions),
    Route("/sessions", create, methods=["POST"]),
    Route("/sessions/{name}", show),
    Route("/sessions/{name}", delete, methods=["DELETE"]),
    Route("/sessions/{name}/tokens", tokens),
    Route("/sessions/{name}/memory", memory),
    Route("/sessions/{name}/fork", fork, methods=["POST"]),
    Route("/sessions/{name}/rewind", rewind, methods=["POST"]),
]
