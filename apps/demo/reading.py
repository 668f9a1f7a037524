"""Reading a text into a session, told as it goes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.demo.pictures import Seen, progress_bar
from apps.demo.shelf import Shelf
from apps.demo.words import Word
from apps.demo.work import Job
from streamlm.runtime.reports import Progress
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.sessions.session import Session

BLOCK = 2048  # bytes read at a time: some tenths of a second
LOOK = 2.0  # seconds between two looks at the memory, at least
SHARE = 0.1  # of the time may be spent on looking


@dataclass(frozen=True)
class ReadNews:
    """How far a reading is.

    Attributes:
        bar: how far and how fast, as HTML; words: the tokens read since the last news.
        seen: the memory, where it was looked at; position: tokens of the session.
        end: what to say at the end.
    """

    bar: str
    words: Sequence[Word]
    position: int
    seen: Seen | None = None
    end: str = ""


def read(job: Job, shelf: Shelf, name: str, *, text: str, checkpoint: Checkpoint) -> None:
    """Read a text; what was read is saved, however it ends. Tells ReadNews.

    The same text, after it was stopped, goes on where it stopped.

    Raises:
        Refused: see `Shelf.open`.
        Stopped: by the visitor.
    """
    decoder, due = StreamDecoder(checkpoint.tokenizer), time.monotonic() + LOOK / 2

    def tell(done: Progress) -> None:
        nonlocal due
        report, seen = done.report, None
        words = [
            Word(decoder.decode([id]), -log_prob / math.log(2))
            for id, log_prob in zip(report.ids, report.logprobs, strict=True)
        ]
        report.ids.clear()  # a long text's would fill the memory
        report.logprobs.clear()
        if (now := time.monotonic()) > due and session.position:
            seen = Seen.of(session)
            due = now + max(LOOK, (time.monotonic() - now) / SHARE)
        bar = progress_bar(done, skipped=report.skipped_bytes)
        job.tell(ReadNews(bar, words, session.position, seen))
        job.pass_turn()

    with tempfile.TemporaryDirectory(prefix="streamlm-") as folder:
        # A file, for what was read of a file is recognised when it is read again.
        file = Path(folder) / "text.txt"
        file.write_bytes(text.encode("utf-8", "replace"))
        with shelf.open(name, checkpoint, create=True) as session, job.turn():
            report = session.feed(file, logprobs=True, block_bytes=BLOCK, progress=tell)
            size = file.stat().st_size
            bar = progress_bar(Progress("", size, size, report), skipped=report.skipped_bytes)
            bits = report.bits_per_byte
            at = "" if bits is None else f" at {bits:.2f} bits per byte"
            end = (
                f"Read {report.tokens:,} tokens{at}; {name} is saved at token {session.position:,}."
            )
            job.tell(ReadNews(bar, [], session.position, Seen.of(session), end))


def strip(session: Session) -> str:
    """A narrow picture of a session's memory; "" where there is none to look at."""
    seen = Seen.of(session)
    return "" if seen is None else seen.picture(layers=False)
