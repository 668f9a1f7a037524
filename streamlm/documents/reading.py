"""Reading a document in a process of its own, which is killed when its time is over."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from streamlm.documents.child import EXHAUSTED, REFUSED
from streamlm.documents.limits import KINDS, DocumentError, Kind, Limits

MB = 1_000_000


def document_text(
    path: Path, *, kind: Kind | None = None, shown: str = "", limits: Limits | None = None
) -> str:
    """The text of an HTML, EPUB or PDF file.

    Nothing in the file is trusted: another process reads it, with limits of memory and time.

    Args:
        kind: of the file; None for what the suffix of its name says, see `KINDS`.
        shown: its name in messages; empty for its path.

    Raises:
        ValueError: it is of no such kind, damaged, encrypted, too large, or without text.
    """
    limits, shown = limits or Limits(), shown or str(path)
    kind = kind or KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{shown} is no document; allowed: {', '.join(KINDS)}")
    size = path.stat().st_size
    if size > limits.file:
        raise DocumentError(
            f"{shown} has {size / MB:.1f} MB; allowed: at most {limits.file / MB:.0f} MB"
        )
    status, said = _read(path, kind, limits)
    if status is None:
        raise DocumentError(
            f"{shown} takes more than {limits.seconds} s to be read; allowed: a simpler file"
        )
    if status == REFUSED:
        raise DocumentError(f"{shown} {said.decode('utf-8')}")
    if status == EXHAUSTED:
        raise DocumentError(
            f"{shown} takes more than {limits.memory / MB:,.0f} MB of memory to be read; "
            "allowed: a simpler file"
        )
    if status:
        raise DocumentError(f"{shown} cannot be read: its reader ended with status {status}")
    text = said.decode("utf-8")
    if not text.strip():
        raise DocumentError(f"{shown} contains no text; allowed: files with text, not only images")
    return text


def _read(path: Path, kind: Kind, limits: Limits) -> tuple[int | None, bytes]:
    """The exit status of a process that reads a file, None if it took too long, and its output."""
    found = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "streamlm.documents.child"),
            *(os.path.abspath(path), kind, json.dumps(asdict(limits))),
        ],
        env=os.environ | {"PYTHONPATH": found},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        said, _ = process.communicate(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        return None, b""
    finally:  # an interruption ends it too
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    status = process.returncode
    if status < 0 and -status in (9, 24):  # SIGXCPU, or SIGKILL at the hard limit
        return None, b""
    return status, said
