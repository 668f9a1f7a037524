"""The cookies of a request."""

from http.cookies import CookieError, SimpleCookie
from typing import Any


def cookie(scope: Any, name: str) -> str:
    """The value of a request's cookie; empty if there is none."""
    given = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
    try:
        found = SimpleCookie(given).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
