"""Calls of the page's and the API's functions: their JSON is checked before Gradio takes it up.

Gradio hands values on as they are sent. What is of another type than a page of the demo would send
gets a 400 that says so, and not a traceback in the log.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse

MAX_BODY = 32 * 1000 * 1000  # bytes: a text of four million characters, escaped
SESSION = re.compile(r"[A-Za-z0-9_-]{1,100}")
Number = (int, float)
TYPES: dict[str, tuple[type, ...]] = {
    "textbox": (str,),
    "html": (str,),
    "button": (str,),
    "slider": Number,
    "number": Number,
    "checkbox": (bool,),
    "file": (dict,),
}
CHOOSING = ("dropdown", "radio")


class Calls:
    """ASGI middleware: refuses calls whose JSON the page would not send.

    Args:
        page: the Gradio application, whose functions are called.
        files: the folder of uploads and exports.
    """

    def __init__(self, app: Any, *, page: gr.Blocks, files: str) -> None:
        self.app, self._page, self._files = app, page, files

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix("/gradio_api").rstrip("/")
        check: Callable[[Any], object] | None = None
        if path == "/queue/join" or path.startswith("/run/"):
            check = self._check_join
        elif path in ("/cancel", "/reset"):
            check = _object
        elif path.startswith("/call/"):
            check = lambda body: self._check_named(body, path.removeprefix("/call/"))  # noqa: E731
        if check is None:
            await self.app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            parsed = _parsed(body)
            if check(parsed) is True:  # it was changed
                body = json.dumps(parsed).encode()
        except ValueError as error:
            await JSONResponse({"detail": str(error), "error": str(error)}, 400)(
                scope, receive, send
            )
            return
        sent = False

        async def again() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _check_join(self, body: Any) -> bool:
        """Check an event of the page; whether it was changed, see `_fill`."""
        body = _object(body)
        number, session = body.get("fn_index"), body.get("session_hash")
        function = self._page.fns.get(number) if type(number) is int else None
        if function is None or function.fn is None:
            raise ValueError("fn_index; allowed: the number of a function of the server")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise ValueError("session_hash; allowed: letters, digits, - and _")
        if not isinstance(body.get("event_data"), dict | None):
            raise ValueError("event_data; allowed: an object, or null")
        self._check_data(body.get("data"), function.inputs, bounded=function.preprocess)
        return function.api_visibility == "private" and _fill(body["data"], function.inputs)

    def _check_named(self, body: Any, name: str) -> None:
        functions = [fn for fn in self._page.fns.values() if fn.api_name == name and fn.fn]
        if not functions:
            raise ValueError("there is no such function; allowed: those of the API")
        inputs, data = functions[0].inputs, _object(body).get("data")
        shown = [block for block in inputs if not block.skip_api]
        short = isinstance(data, list) and len(data) == len(shown)
        self._check_data(data, shown if short else inputs)

    def _check_data(self, data: Any, inputs: Any, *, bounded: bool = True) -> None:
        if not isinstance(data, list) or len(data) != len(inputs):
            raise ValueError(f"data; allowed: a list of {len(inputs)} values")
        for place, (value, block) in enumerate(zip(data, inputs, strict=True)):
            kind = block.get_block_name()
            choices = [chosen for _, chosen in getattr(block, "choices", None) or []]
            allowed = TYPES.get(kind)
            if kind in CHOOSING:  # names, which the page may learn later, or what was its choice
                allowed = tuple({str: None, **{type(each): None for each in choices}})
            chosen = kind == "radio" and block.value is not None  # one cannot choose none again
            if allowed is None or (value is None and allowed != Number and not chosen):
                continue
            if type(value) not in allowed:
                names = " or ".join(one.__name__ for one in allowed)
                raise ValueError(f"data[{place}] is a {type(value).__name__}; allowed: {names}")
            free = not choices or getattr(block, "allow_custom_value", False)
            if not free and value not in choices:
                raise ValueError(f"data[{place}]; allowed: a choice of the page")
            if bounded and kind == "slider" and not block.minimum <= value <= block.maximum:
                raise ValueError(f"data[{place}]; allowed: {block.minimum} to {block.maximum}")
            if kind == "file":
                self._check_file(value, f"data[{place}]")

    def _check_file(self, value: Mapping[str, Any], what: str) -> None:
        path = value.get("path")
        inside = False
        if isinstance(path, str) and "\0" not in path:
            real, folder = os.path.realpath(path), os.path.realpath(self._files)
            inside = real.startswith(folder + os.sep) and os.path.isfile(real)
        if not inside:
            raise ValueError(f"{what}; allowed: a file that was uploaded and is still there")


def _fill(data: list[Any], inputs: Any) -> bool:
    """Put an empty text in place of none, which a field may send; whether there was one."""
    none = [
        place
        for place, (value, block) in enumerate(zip(data, inputs, strict=True))
        if value is None and block.get_block_name() == "textbox"
    ]
    for place in none:
        data[place] = ""
    return bool(none)


async def _body(receive: Any) -> bytes:
    pieces, length = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ValueError("the request ended early")
        pieces.append(message.get("body", b""))
        length += len(pieces[-1])
        if length > MAX_BODY:
            raise ValueError(f"a body of more than {MAX_BODY:,} bytes; allowed: less")
        if not message.get("more_body"):
            return b"".join(pieces)


def _parsed(body: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant}; allowed: finite numbers")

    def finite(text: str) -> float:
        number = float(text)
        return refuse(text[:20]) if number in (float("inf"), -float("inf")) else number

    try:
        return json.loads(body, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply; allowed: less") from None


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise ValueError("the body; allowed: a JSON object")
    return body
