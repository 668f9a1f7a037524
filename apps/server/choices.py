"""Choices: several texts that are written at once for one request."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from streamlm.engine import Written


@dataclass
class Usage:
    """Tokens of a request."""

    read: int = 0
    wrote: int = 0

    def add(self, written: Written) -> None:
        """Add those of a text."""
        self.read += written.n_read
        self.wrote += int(written)

    def to_json(self) -> dict[str, int]:
        """OpenAI's shape."""
        return {
            "prompt_tokens": self.read,
            "completion_tokens": self.wrote,
            "total_tokens": self.read + self.wrote,
        }


@dataclass
class Positions:
    """Where the session of a request stands after it; None without a session."""

    name: str | None = None
    after: int | None = None

    def to_json(self) -> dict[str, object]:
        """What is added to an answer: nothing without a session."""
        return {} if self.name is None else {"session": {"name": self.name, "position": self.after}}


async def all_of(works: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Do all at once; the first that fails ends the others.

    Raises:
        Exception: that of the first that failed.
    """
    if len(works) == 1:
        await works[0]()
        return
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def run(work: Callable[[], Awaitable[object]]) -> None:
            try:
                await work()
            except Exception as error:
                failures.append(error)
                group.cancel_scope.cancel()

        for work in works:
            group.start_soon(run, work)
    if failures:
        raise failures[0]
