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
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.engine import Engine

BLOCK = 2048  # bytes taken at a time: what is left of them when reading is stopped is read later
VIEW_INTERVAL = 2.0  # seconds between two views of the memory, at least
VIEW_SHARE = 0.2  # share of the time in which views may be made, while the reading goes on


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


def read(job: Job, shelf: Shelf, name: str, *, text: str, engine: Engine) -> None:
    """Read a text and emit ReadProgress; whatever was read is saved, however the job ends.

    Reading the same text again after an interruption resumes where it stopped.

    Raises:
        Refused: see `Shelf.open`.
        Cancelled: by the visitor.
    """
    decoder = StreamDecoder(engine.checkpoint.tokenizer)
    next_view = time.monotonic() + VIEW_INTERVAL / 2
    with tempfile.TemporaryDirectory(prefix="streamlm-") as folder:
        # Only a file can be resumed: the session recognises what it has read of it.
        file = Path(folder) / "text.txt"
        size = file.write_bytes(text.encode("utf-8", "replace"))
        with shelf.open(name, engine.checkpoint, create=True) as session:
            request = engine.feed(session, file, token_events=True, block_bytes=BLOCK)
            with job.request(request) as reports:
                for report in reports:
                    tokens = [
                        ScoredToken(decoder.decode([id]), -log_prob / math.log(2))
                        for id, log_prob in zip(report.ids, report.logprobs, strict=True)
                    ]
                    view = None
                    if (now := time.monotonic()) > next_view:
                        view = MemoryView.of(engine, session, result=job.result)
                        took = time.monotonic() - now
                        next_view = now + max(VIEW_INTERVAL, took / VIEW_SHARE)
                    bar = progress_bar(report, size=size)
                    job.emit(ReadProgress(bar, tokens, report.position, view))
                report = reports.result()
    # The session is closed by now, so that whoever reads the summary can use it.
    bits, position = report.bits_per_byte, report.position
    at = "" if bits is None else f" at {bits:.2f} bits per byte"
    summary = f"Read {report.tokens:,} tokens{at}; {name} is saved at token {position:,}."
    bar = progress_bar(report, size=size, ended=True)
    job.emit(ReadProgress(bar, [], position, summary=summary))
