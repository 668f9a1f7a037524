"""Errors of the memory store: one class for each condition that a caller may handle.

Every message names the file or object and ends with a remedy. Invalid arguments raise `ValueError`;
whatever the medium holds or refuses raises a `StoreError`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """Base class of all errors of a memory store."""


class NotFound(StoreError):
    """The requested session, branch, position or token does not exist."""


class Corrupt(StoreError):
    """A file is damaged, missing, misplaced or implausible; the message names it."""


class Conflict(StoreError):
    """Another writer moved the branch; nothing was committed and nothing changed."""


class Locked(StoreError):
    """Another writer holds the branch; the message names its process."""


class Mismatch(StoreError):
    """The snapshot was made with other weights, another tokenizer or other settings.

    Attributes:
        differing: {name: (recorded, given)}; an unknown value is None.
    """

    def __init__(self, message: str, differing: dict[str, tuple[str | None, str | None]]) -> None:
        super().__init__(message)
        self.differing = differing


class UnsupportedSchema(StoreError):
    """The session was written in a format that this version does not support."""


class StoreFull(StoreError):
    """No space is left; the last commit stays readable and no partial commit remains."""


@contextmanager
def os_errors(doing: str, path: object) -> Iterator[None]:
    """Convert an OSError into the StoreError that says what was being done to `path`.

    Raises:
        StoreFull: no space or quota is left.
        StoreError: any other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise from_os(error, doing, path) from error


def from_os(error: OSError, doing: str, path: object) -> StoreError:
    """The StoreError for `error`, which occurred while `doing` something to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"{path}: no space left while {doing}; the last commit is intact. "
            "Free some space and commit again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path}: not permitted while {doing} ({error.strerror}). "
            "Check the owner and mode of the folder, or copy the session to a folder you own."
        )
    return StoreError(
        f"{path}: the system failed while {doing} ({error.strerror or error}). "
        "Check the path and the disk, then try again."
    )
