"""Followed: a file that grows, read as it is written, like `tail -F`."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

POLL = 0.5  # seconds between two looks at a file that has not grown


class Followed(os.PathLike[str]):
    """A file that is read on as it grows, as a source of `Session.feed` and `score`.

    A file that is replaced (rotated) is read to its end, and then its successor from its beginning;
    one that was shortened is read from its beginning. Where the old one ends within a line, the
    line is ended.

    Args:
        path: the file; it must exist at the beginning.
        until: called when there is nothing new; True ends the source. None follows for ever.
        poll: seconds between two looks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        until: Callable[[], bool] | None = None,
        poll: float = POLL,
    ) -> None:
        self.path = Path(path)
        self._until = until
        self._poll = poll

    def __fspath__(self) -> str:
        return str(self.path)

    def blocks(self, start: int, size: int) -> Iterator[bytes | None]:
        """What is written to the file; None before the beginning of a new file.

        Args:
            start: bytes to skip.
            size: of a block at most.
        """
        file: IO[bytes] = open(self.path, "rb")  # noqa: SIM115 - another one follows
        last = b"\n"
        try:
            file.seek(start)
            while True:
                if block := file.read(size):
                    yield block
                    last = block[-1:]
                elif successor := self._successor(file):
                    file.close()
                    file = successor
                    if last != b"\n":
                        yield b"\n"
                    yield None
                    last = b"\n"
                elif self._until is not None and self._until():
                    return
                else:
                    time.sleep(self._poll)
        finally:
            file.close()

    def _successor(self, file: IO[bytes]) -> IO[bytes] | None:
        """The file that has taken the place of one that was read to its end, from its beginning."""
        now = os.fstat(file.fileno())
        if now.st_size < file.tell():
            return open(self.path, "rb")
        try:
            there = os.stat(self.path)
        except FileNotFoundError:  # between being moved away and being created anew
            return None
        if (there.st_dev, there.st_ino) == (now.st_dev, now.st_ino):
            return None
        # Its last bytes may have been written since it was read.
        grown = os.fstat(file.fileno()).st_size > file.tell()
        return None if grown else open(self.path, "rb")
