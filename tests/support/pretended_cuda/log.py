"""What happens on the pretended device: a `Log` of kernels, waits and copies; `Refused` otherwise.

A wait is a point where the host blocks until the device has caught up.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

HERE = str(Path(__file__).resolve().parent)
ROOT = str(Path(__file__).resolve().parents[3])


class Refused(RuntimeError):
    """An operation that CUDA would refuse; the message names the line of the project."""


@dataclass
class Log:
    """Counts since the log was opened. A line is "file:line", relative to the repository.

    Attributes:
        kernels: launches by operator.
        kernels_at: launches by line.
        waits: by (reason, line), how often the host would have blocked.
        copies: by (direction, line), copies between host and device.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    kernels_at: Counter[str] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def n_kernels(self) -> int:
        return self.kernels.total()

    @property
    def n_waits(self) -> int:
        return self.waits.total()

    def offenders(self) -> str:
        """Every wait with its line, most frequent first; for assertion messages."""
        rows = (f"{n}x {reason} at {line}" for (reason, line), n in self.waits.most_common())
        return "\n".join(rows) or "no wait"

    def busiest(self, n: int = 10) -> str:
        """The n lines that launch most kernels; for assertion messages."""
        return "\n".join(f"{count} kernels at {at}" for at, count in self.kernels_at.most_common(n))


_counting: list[Log] = []


@contextlib.contextmanager
def counting() -> Iterator[Log]:
    """Open a log for the length of the block; logs nest."""
    log = Log()
    _counting.append(log)
    try:
        yield log
    finally:
        _counting[:] = [other for other in _counting if other is not log]


def note_kernel(operator: str, n: int = 1) -> None:
    """Count kernel launches."""
    if _counting:
        line = project_line()
        for log in _counting:
            log.kernels[operator] += n
            log.kernels_at[line] += n


def note_wait(reason: str) -> None:
    """Count a wait."""
    if _counting:
        line = project_line()
        for log in _counting:
            log.waits[reason, line] += 1


def note_copy(direction: str) -> None:
    """Count a copy between host and device."""
    if _counting:
        line = project_line()
        for log in _counting:
            log.copies[direction, line] += 1


def project_line() -> str:
    """The innermost stack frame in the project, "file:line"; "?" if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if name := _in_the_project(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@cache
def _in_the_project(name: str) -> str:
    """A file's name, relative to the repository; "" if it is not of the project."""
    ours = name.startswith(ROOT) and not name.startswith(HERE) and "site-packages" not in name
    return name[len(ROOT) + 1 :] if ours else ""
