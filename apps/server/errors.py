"""Errors: what a client gets, in OpenAI's shape, for whatever went wrong."""

import re
from collections.abc import Mapping
from typing import Any

from memory_store import Conflict, Locked, Mismatch, NotFound, StoreError
from memory_store.errors import StoreFull
from streamlm.engine import Busy, Cancelled
from streamlm.sessions.one_thread import InUse

RETRY_AFTER = 1  # seconds
# The OpenAI clients repeat requests that failed; what was read would be read twice.
NO_RETRY = {"x-should-retry": "false"}
TYPES = {
    **{400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"},
    **{404: "not_found_error", 405: "invalid_request_error", 409: "conflict_error"},
    **{413: "request_too_large", 503: "overloaded_error"},
}


class ApiError(Exception):
    """An error that a client gets.

    Args:
        param: the field that it is about; code: a short name of the reason.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """OpenAI's shape."""
        kind = TYPES.get(self.status, "server_error")
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class HungUp(Exception):
    """The client has hung up; there is nobody to answer."""


def refused(name: str, value: object, allowed: str) -> ApiError:
    """A field has a value that is not allowed."""
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    return ApiError(400, f"{name} = {shown}; allowed: {allowed}", param=name)


def api_error(error: BaseException) -> ApiError:
    """What a client gets for an error; its message may name folders of the server."""
    if isinstance(error, ApiError):
        return error
    message = str(error) or type(error).__name__
    if isinstance(error, Busy):
        return ApiError(503, message, code="busy", headers={"Retry-After": str(RETRY_AFTER)})
    if isinstance(error, Cancelled):
        stopped = "the server is stopping; what was read and written until now is saved"
        return ApiError(503, stopped, code="stopping", headers=NO_RETRY)
    if isinstance(error, NotFound):
        return ApiError(404, message, code="not_found")
    if isinstance(error, (Locked, InUse)):
        return ApiError(409, message, code="in_use")
    if isinstance(error, Conflict):
        return ApiError(409, message, code="conflict", headers=NO_RETRY)
    if isinstance(error, Mismatch):
        return ApiError(409, message, code="other_model", headers=NO_RETRY)
    if isinstance(error, StoreFull):
        return ApiError(507, message, code="store_full", headers=NO_RETRY)
    if isinstance(error, StoreError):
        return ApiError(500, message, code="store_error", headers=NO_RETRY)
    if isinstance(error, (ValueError, TypeError)):
        named = re.match(r"(\w+) = ", message)
        return ApiError(400, message, param=named[1] if named else None)
    return ApiError(500, "the server failed; its log has the reason", headers=NO_RETRY)
