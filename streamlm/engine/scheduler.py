"""Scheduler: which requests run, and whose turn it is. No model, no threads.

Requests are admitted in the order in which they came, each session's one at a time. Among those
that run, tasks that read take turns of one segment; all that write take each step together.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from streamlm.config import check_whole
from streamlm.engine.handle import Busy, Handle
from streamlm.engine.wants import Decode, Task, Turn, Want
from streamlm.sessions.live import LiveStream


@dataclass(eq=False)
class Request:
    """A task with its handle.

    Attributes:
        session: the stream, which only one request at a time may use; None if it only looks.
        want: what the task asked for last; None before its first step and after its last.
        told: the task knows that it was cancelled.
    """

    task: Task
    handle: Handle
    session: LiveStream | None
    want: Turn | Want | Decode | None = None
    told: bool = False


class Scheduler:
    """The requests of an engine.

    Args:
        max_waiting: requests that may wait; max_running: requests that may run at once.
    """

    def __init__(self, *, max_waiting: int, max_running: int) -> None:
        for name, value in (("max_waiting", max_waiting), ("max_running", max_running)):
            check_whole(name, value, least=1)
        self.max_waiting, self.max_running = max_waiting, max_running
        self.waiting: deque[Request] = deque()
        self.running: deque[Request] = deque()
        self._in_use: set[LiveStream] = set()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            Busy: as many as may wait do.
        """
        if len(self.waiting) >= self.max_waiting:
            raise Busy(f"{len(self.waiting)} requests are waiting; allowed: {self.max_waiting}")
        self.waiting.append(request)

    def admit(self) -> None:
        """Start the oldest requests whose sessions are free."""
        passed: deque[Request] = deque()
        while self.waiting and len(self.running) < self.max_running:
            request = self.waiting.popleft()
            if request.session in self._in_use:
                passed.append(request)
                continue
            if request.session is not None:
                self._in_use.add(request.session)
            self.running.append(request)
        passed.extend(self.waiting)
        self.waiting = passed

    def remove(self, request: Request) -> None:
        """Forget a request that has ended."""
        self.running.remove(request)
        if request.session is not None:
            self._in_use.discard(request.session)

    def drop_waiting(self) -> list[Request]:
        """Forget the cancelled requests that have not started, and return them."""
        dropped = [request for request in self.waiting if request.handle.cancelled]
        if dropped:
            self.waiting = deque(each for each in self.waiting if not each.handle.cancelled)
        return dropped

    def next_reader(self) -> Request | None:
        """The next request whose task wants a turn; the others come before it is chosen again."""
        for _ in range(len(self.running)):
            request = self.running[0]
            self.running.rotate(-1)
            if request.want is None or isinstance(request.want, Turn):
                return request
        return None

    def writers(self) -> Iterator[tuple[Request, Decode]]:
        """The requests whose rows are to be decoded."""
        for request in list(self.running):
            if isinstance(request.want, Decode):
                yield request, request.want

    def wanting(self, want: Want) -> list[Request]:
        """The requests whose tasks want this."""
        return [request for request in self.running if request.want is want]
