"""OpenSessions: the sessions of a shelf that are in memory, within a limit of bytes.

Those that nobody uses stay open as long as there is room. The least recently used are then closed:
they are in the store, and come back when they are asked for.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streamlm.config import check_whole
from streamlm.sessions.session import Session

LIMIT = 1 << 30  # bytes
MOST_BYTES = 1 << 63

OnUnsaved = Callable[[str, Exception], None]


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"session {name!r} was closed unsaved: {error}", RuntimeWarning, stacklevel=2)


@dataclass(eq=False)
class _Open:
    """A session that is open, or that a thread is opening.

    Attributes:
        users: blocks of `use` that hold it.
        ready: set once `session` or `error` is.
    """

    users: int
    ready: threading.Event
    session: Session | None = None
    error: BaseException | None = None


class OpenSessions:
    """Opens sessions by name, and keeps those in memory that were used last.

    Methods may be called from any thread.

    Args:
        open: opens the session of a name, such as `shelf.open_named` with its other arguments.
        limit: bytes of state, keys and values to keep in memory. Sessions in use are never closed,
            so more are held while more are used.
        on_unsaved: called with the name of a session that was closed to make room, and the error
            that kept it from being saved, such as a conflict. Whoever uses another session then
            does not get that error. By default, a warning.
    """

    def __init__(
        self,
        open: Callable[[str], Session],
        *,
        limit: int = LIMIT,
        on_unsaved: OnUnsaved = _warn,
    ) -> None:
        check_whole("limit", limit, most=MOST_BYTES)
        self._open = open
        self._on_unsaved = on_unsaved
        self._limit = limit
        self._guard = threading.Lock()
        self._sessions: OrderedDict[str, _Open] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Bytes of the sessions in memory."""
        with self._guard:
            return self._total()

    def names(self) -> list[str]:
        """The names of the sessions in memory, the least recently used first."""
        with self._guard:
            return list(self._sessions)

    @contextmanager
    def use(self, name: str) -> Iterator[Session]:
        """The session of a name, opened if it is not; it stays open within the block.

        Raises:
            Exception: as the function that opens.
        """
        with self._guard:
            entry = self._sessions.get(name)
            opens = entry is None
            if entry is None:
                entry = self._sessions[name] = _Open(0, threading.Event())
            entry.users += 1
            self._sessions.move_to_end(name)
        try:
            if opens:
                self._fill(name, entry)
            entry.ready.wait()
            if entry.error is not None:
                raise entry.error
            assert entry.session is not None
            yield entry.session
        finally:
            with self._guard:
                entry.users -= 1
            self._shrink(self._limit)

    def _fill(self, name: str, entry: _Open) -> None:
        try:
            entry.session = self._open(name)
        except BaseException as error:
            entry.error = error
            with self._guard:
                del self._sessions[name]
        finally:
            entry.ready.set()

    def _total(self) -> int:
        return sum(_bytes(entry.session) for entry in self._sessions.values() if entry.session)

    def _shrink(self, limit: int) -> None:
        """Close sessions that nobody uses, the least recently used first."""
        while True:
            with self._guard:
                if self._total() <= limit:
                    return
                idle = (name for name, entry in self._sessions.items() if not entry.users)
                name = next(idle, None)
                if name is None:
                    return
                entry = self._sessions[name]
                # Whoever asks for it now waits until it is closed, and opens it again.
                closing = self._sessions[name] = _Open(1, threading.Event())
            try:
                if entry.session is not None:
                    entry.session.close()
            except Exception as error:
                self._on_unsaved(name, error)
            finally:
                with self._guard:
                    reopens = closing.users > 1
                    closing.users -= 1
                    if not reopens:
                        del self._sessions[name]
                if reopens:
                    self._fill(name, closing)

    def close(self, name: str | None = None) -> None:
        """Close the session of a name, or all that nobody uses.

        Raises:
            ValueError: the session is in use.
            Exception: the session of that name could not be saved. Of all, see `on_unsaved`.
        """
        if name is None:
            self._shrink(-1)
            return
        with self._guard:
            entry = self._sessions.get(name)
            if entry is None:
                return
            if entry.users:
                raise ValueError(f"session {name!r} is in use; allowed: wait until it is not")
            del self._sessions[name]
        if entry.session is not None:
            entry.session.close()


def _bytes(session: Session) -> int:
    live = session.live
    return live.stream.state.nbytes + live.cache.nbytes
