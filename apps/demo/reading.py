"""Reading a text into a session, with progress events."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.demo.jobs import Job
from apps.demo.render.memory_svg import MemoryView
from apps.demo.render.progress_bar import progress_bar
from apps.demo.render.text_html import ScoredToken
from apps.demo.shelf import Shelf
from streamlm.runtime.reports import Progress
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint

BLOCK = 2048  # bytes read at a time: some tenths of a second
VIEW_INTERVAL = 2.0  # seconds between two views of the memory, at least
VIEW_SHARE = 0.1  # share of the time that views may take


@dataclass(frozen=True)
class ReadProgress:
    """The progress of a read.

    Attributes:
        bar: progress and speed as HTML; tokens: those read since the last event.
        position: tokens of the session; view: its memory, at some of the events.
        summary: a sentence on the whole read, at the last event.
    """

    bar: str
    tokens: Sequence[ScoredToken]
    position: int
    view: MemoryView | None = None
    summary: str = ""


def read(job: Job, shelf: Shelf, name: str, *, text: str, checkpoint: Checkpoint) -> None:
    """Read a text and emit ReadProgress; whatever was read is saved, however the job ends.

    Reading the same text again after an interruption resumes where it stopped.

    Raises:
        Refused: see `Shelf.open`.
        Cancelled: by the visitor.
    """
    decoder, next_view = StreamDecoder(checkpoint.tokenizer), time.monotonic() + VIEW_INTERVAL / 2

    def emit(progress: Progress) -> None:
        nonlocal next_view
        report, view = progress.report, None
        tokens = [
            ScoredToken(decoder.decode([id]), -log_prob / math.log(2))
            for id, log_prob in zip(report.ids, report.logprobs, strict=True)
        ]
        report.ids.clear()  # those of a long text would fill the memory
        report.logprobs.clear()
        if (now := time.monotonic()) > next_view and session.position:
            view = MemoryView.of(session, between=job.yield_turn)
            next_view = now + max(VIEW_INTERVAL, (time.monotonic() - now) / VIEW_SHARE)
        bar = progress_bar(progress, skipped=report.skipped_bytes)
        job.emit(ReadProgress(bar, tokens, session.position, view))
        job.yield_turn()

    with tempfile.TemporaryDirectory(prefix="streamlm-") as folder:
        # Only a file can be resumed: the session recognises what it has read of it.
        file = Path(folder) / "text.txt"
        file.write_bytes(text.encode("utf-8", "replace"))
        with shelf.open(name, checkpoint, create=True) as session, job.turn():
            report = session.feed(file, logprobs=True, block_bytes=BLOCK, progress=emit)
            size = file.stat().st_size
            bar = progress_bar(Progress("", size, size, report), skipped=report.skipped_bytes)
            bits, position = report.bits_per_byte, session.position
    # The session is closed by now, so that whoever reads the summary can use it.
    at = "" if bits is None else f" at {bits:.2f} bits per byte"
    summary = f"Read {report.tokens:,} tokens{at}; {name} is saved at token {position:,}."
    job.emit(ReadProgress(bar, [], position, summary=summary))
