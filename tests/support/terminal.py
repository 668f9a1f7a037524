"""A command in a terminal: what it shows, and what is typed."""

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping

from tests.support.command_line import COMMAND, ROOT

PATIENCE = 5.0  # seconds before a key is pressed again
LIMIT = 120.0  # seconds to wait for an output, on a busy machine


class Terminal:
    """`streamlm` in a terminal of its own, in the current folder."""

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self._screen, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (40, 200))
        given = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **(environment or {})}
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
            given.pop(name, None)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=given,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(terminal)
        self._shown = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """What was shown so far, without control sequences."""
        text = self._shown.decode("utf-8", "replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def type(self, text: str) -> None:
        """Type a text; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._screen, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Wait until a text is shown after the one that was waited for before."""
        deadline = time.monotonic() + LIMIT
        while not (found := re.compile(pattern).search(self.text, self._seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            assert self._read(0.1), f"it ended without {pattern!r}: {self.text!r}"
        self._seen = found.end()
        return found[0]

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C at a prompt until a text is shown.

        Python notices one that arrives between its prompt and its wait for a key at the next key.
        """
        shown, pressed = re.compile(pattern), -PATIENCE
        deadline = time.monotonic() + LIMIT
        while not shown.search(self.text, self._seen):
            now = time.monotonic()
            assert now < deadline, f"no {pattern!r} in {self.text!r}"
            if now - pressed >= PATIENCE:
                self.type("\x03")
                pressed = now
            self._read(0.1)
        self.wait_for(pattern)

    def end(self) -> int:
        """Read the rest, and return the exit status."""
        while self._read(LIMIT):
            pass
        os.close(self._screen)
        return self.process.wait(LIMIT)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self, seconds: float) -> bool:
        """Read what is shown within some time; False at the end."""
        if not select.select([self._screen], [], [], seconds)[0]:
            return self.process.poll() is None
        try:
            block = os.read(self._screen, 1 << 16)
        except OSError:  # on Linux: no process has the terminal open
            block = b""
        self._shown += block
        return bool(block)


def _take_terminal() -> None:
    """In the child: the terminal's Ctrl-C becomes a signal of this process."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A background job of a script inherits an ignored SIGINT; a terminal's does not.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
