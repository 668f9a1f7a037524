"""Errors of the memory store: one class per thing a caller may want to handle.

Every message names the file or thing and ends with a remedy. Wrong arguments are `ValueError`, as
everywhere; what the disk holds or refuses is a `StoreError`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """Base of all errors of a memory store."""


class NotFound(StoreError):
    """The session, branch, position or token asked for is not there."""


class Corrupt(StoreError):
    """A file is damaged, missing, out of place or absurd; the message names it."""


class Conflict(StoreError):
    """Somebody else moved the branch: the commit was not made, and nothing was changed."""


class Locked(StoreError):
    """Another writer holds the branch; the message names its process."""


class Mismatch(StoreError):
    """The snapshot was made with other weights, another tokenizer or other settings.

    Attributes:
        differing: {name: (recorded, given)}; a value that is not known is None.
    """

    def __init__(self, message: str, differing: dict[str, tuple[str | None, str | None]]) -> None:
        super().__init__(message)
        self.differing = differing


class UnsupportedSchema(StoreError):
    """The session was written in a format that this version does not know."""


class StoreFull(StoreError):
    """No space left; the last commit is still readable and nothing half-written remains."""


@contextmanager
def os_errors(doing: str, path: object) -> Iterator[None]:
    """Turn an OSError into the StoreError that says what was being done to `path`.

    Raises:
        StoreFull: no space or quota left.
        StoreError: anything else that the operating system refused.
    """
    try:
        yield
    except OSError as error:
        raise from_os(error, doing, path) from error


def from_os(error: OSError, doing: str, path: object) -> StoreError:
    """The StoreError that stands for `error`, met while `doing` something to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"{path}: no space left while {doing}; the last commit is intact. "
            "Free some space and commit again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path}: not permitted while {doing} ({error.strerror}). "
            "Check the owner and mode of the folder, or copy the session to a folder of your own."
        )
    return StoreError(
        f"{path}: the system refused while {doing} ({error.strerror or error}). "
        "Check the path and the disk, then try again."
    )
