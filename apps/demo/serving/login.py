"""Logins: names and passwords, a cookie for those who know them, and fewer and fewer tries."""

import hashlib
import hmac
import html
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from apps.demo.serving.cookies import cookie

COOKIE = "streamlm-login"
USER = "streamlm.user"  # in the scope of requests that are let in
PAGE = Path(__file__).parent / "login_page.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
MAX_BODY = 8192  # bytes of a name and a password
KEPT = 10_000  # logins, and counts of failed tries, that are remembered


@dataclass
class _Tries:
    """Failed tries of one name or from one address: how many, and when the next one may come."""

    count: int = 0
    after: float = 0.0


class BackOff:
    """Lets some tries fail, and then makes each wait twice as long as the one before.

    Args:
        free: tries that may fail without waiting.
        most: seconds that a try waits at most.
    """

    def __init__(self, *, free: int, most: float) -> None:
        self._free, self._most = free, most
        self._failed: OrderedDict[str, _Tries] = OrderedDict()

    def wait(self, key: str, *, now: float) -> float:
        """Seconds until the next try of `key` may come; 0 for now."""
        tries = self._failed.get(key)
        return 0.0 if tries is None else max(0.0, tries.after - now)

    def fail(self, key: str, *, now: float) -> None:
        """Count a failed try."""
        tries = self._failed.setdefault(key, _Tries())
        self._failed.move_to_end(key)
        tries.count += 1
        if tries.count >= self._free:
            tries.after = now + min(self._most, 2.0 ** min(tries.count - self._free, 30))
        while len(self._failed) > KEPT:
            self._failed.popitem(last=False)

    def forget(self, key: str) -> None:
        """Count from the beginning, after a try that succeeded."""
        self._failed.pop(key, None)


class Login:
    """ASGI middleware: lets in who has logged in, and shows others a page to log in.

    Args:
        users: names and passwords.
    """

    def __init__(self, app: Any, *, users: Sequence[tuple[str, str]]) -> None:
        self.app = app
        self._users = {name: _digest(password) for name, password in users}
        self._page = PAGE.read_text(encoding="utf-8")
        self._tokens: OrderedDict[bytes, str] = OrderedDict()
        # By address, many names are tried; by name, from many addresses.
        self._by_address = BackOff(free=5, most=60.0)
        self._by_name = BackOff(free=20, most=10.0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].rstrip("/")
        token = cookie(scope, COOKIE)
        user = self._tokens.get(_digest(token)) if token else None
        if path == "/login" and scope["method"] == "POST":
            response = await self._log_in(scope, receive)
        elif path == "/logout":
            self._tokens.pop(_digest(token), None)
            response = RedirectResponse("./", 303)
            response.delete_cookie(COOKIE, httponly=True, samesite="lax")
        elif user is not None:
            scope[USER] = user
            await self.app(scope, receive, send)
            return
        elif b"text/html" in dict(scope["headers"]).get(b"accept", b""):
            response = self._form(scope, "", status=401)
        else:
            response = JSONResponse({"error": "Log in first."}, 401)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = POLICY
        await response(scope, receive, send)

    async def _log_in(self, scope: Any, receive: Any) -> Response:
        name, password = await _credentials(receive)
        now, address = time.monotonic(), (scope.get("client") or ("",))[0]
        browser = b"text/html" in dict(scope["headers"]).get(b"accept", b"")
        wait = max(self._by_address.wait(address, now=now), self._by_name.wait(name, now=now))
        if wait:
            said = f"Too many tries; the next one is possible in {wait:.0f} s."
            response = self._refused(scope, said, status=429, browser=browser)
            response.headers["Retry-After"] = str(int(wait) + 1)
            return response
        # A name that does not exist takes as long as a wrong password.
        right = hmac.compare_digest(self._users.get(name, b""), _digest(password))
        if not right:
            self._by_address.fail(address, now=now)
            self._by_name.fail(name, now=now)
            return self._refused(
                scope, "The name or the password is incorrect.", status=401, browser=browser
            )
        self._by_address.forget(address)
        self._by_name.forget(name)
        token = secrets.token_urlsafe(32)
        self._tokens[_digest(token)] = name
        while len(self._tokens) > KEPT:
            self._tokens.popitem(last=False)
        query = scope["query_string"].decode("latin-1")
        target = f"./?{query}" if query else "./"
        response = RedirectResponse(target, 303) if browser else JSONResponse({"success": True})
        response.set_cookie(
            COOKIE, token, httponly=True, samesite="lax", secure=scope.get("scheme") == "https"
        )
        return response

    def _refused(self, scope: Any, said: str, *, status: int, browser: bool) -> Response:
        if browser:
            return self._form(scope, said, status=status)
        return JSONResponse({"error": said}, status)

    def _form(self, scope: Any, said: str, *, status: int) -> Response:
        query = scope["query_string"].decode("latin-1")
        page = self._page.replace("{said}", html.escape(said))
        return HTMLResponse(page.replace("{query}", html.escape(query)), status)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


async def _credentials(receive: Any) -> tuple[str, str]:
    """The name and the password in a form; empty where there are none."""
    body = b""
    while len(body) <= MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        fields = parse_qs(body[:MAX_BODY].decode("utf-8", "replace"), max_num_fields=8)
    except ValueError:
        return "", ""
    return fields.get("username", [""])[0].strip(), fields.get("password", [""])[0]
