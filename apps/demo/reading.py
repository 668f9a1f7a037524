"""Reading a text into a session, with progress events."""

from __future__ import annotations

import math
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.demo.jobs import Job
from apps.demo.render.memory_svg import MemoryView, Zones
from apps.demo.render.progress_bar import progress_bar
from apps.demo.render.text_html import ScoredToken
from apps.demo.shelf import Shelf
from memory_store import NotFound
from tokenizer import StreamDecoder

if TYPE_CHECKING:
    from streamlm.engine import Engine
    from streamlm.runtime.memory_report import SlotWatch
    from streamlm.sessions.session import Session

BLOCK = 2048  # bytes taken at a time: what is left of them when reading is stopped is read later
VIEW_INTERVAL = 2.0  # seconds between two views of the memory, at least
VIEW_SHARE = 0.2  # share of the time in which views may be made, while the reading goes on


@dataclass(frozen=True)
class ReadProgress:
    """The progress of a read.

    Attributes:
        bar: progress and speed as HTML; tokens: those read since the last event.
        position: tokens of the session; slots: its memory, without attention, and None where the
            head has no slots.
        view: its memory with attention, at some of the events.
        summary: a sentence on the whole read, at the last event.
    """

    bar: str
    tokens: Sequence[ScoredToken]
    position: int
    slots: MemoryView | None = None
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
            slots = _Slots.of(engine, session)
            request = engine.feed(session, file, token_events=True, block_bytes=BLOCK)
            with job.request(request) as reports:
                for report in reports:
                    texts = [decoder.decode([id]) for id in report.ids]
                    tokens = [
                        ScoredToken(text, -log_prob / math.log(2))
                        for text, log_prob in zip(texts, report.logprobs, strict=True)
                    ]
                    view = None
                    if (now := time.monotonic()) > next_view:
                        view = MemoryView.of(engine, session, result=job.result)
                        took = time.monotonic() - now
                        next_view = now + max(VIEW_INTERVAL, took / VIEW_SHARE)
                    bar = progress_bar(report, size=size)
                    drawn = slots.after(report.position, texts) if slots else None
                    job.emit(ReadProgress(bar, tokens, report.position, drawn, view))
                report = reports.result()
    # The session is closed by now, so that whoever reads the summary can use it.
    bits, position = report.bits_per_byte, report.position
    at = "" if bits is None else f" at {bits:.2f} bits per byte"
    summary = f"Read {report.tokens:,} tokens{at}; {name} is saved at token {position:,}."
    bar = progress_bar(report, size=size, ended=True)
    job.emit(ReadProgress(bar, [], position, summary=summary))


class _Slots:
    """The slots of a session while it reads, with the texts behind them."""

    def __init__(self, watch: SlotWatch, zones: Zones, pieces: deque[str]) -> None:
        self._watch, self._zones, self._pieces = watch, zones, pieces

    @classmethod
    def of(cls, engine: Engine, session: Session) -> _Slots | None:
        """Those of a session that is about to read; None where the head has no slots."""
        from streamlm.runtime.memory_report import SlotWatch, window  # needs torch

        model, live = engine.checkpoint.model, session.live
        if not model.reports_memory:
            return None
        watch = SlotWatch(model, live.stream.state)
        live.cache.on_commit = watch.commit
        n, store = window(model.config), live.require_store("show its memory")
        try:
            before = store.tokens(max(0, live.position - n), live.position).tolist()
        except NotFound:  # deleted
            before = []
        decoder = StreamDecoder(engine.checkpoint.tokenizer)
        texts = deque([decoder.decode([id]) for id in before], maxlen=n)
        return cls(watch, Zones.of(model.config), texts)

    def after(self, position: int, texts: Sequence[str]) -> MemoryView | None:
        """The slots after the next tokens, which lead to `position`."""
        self._pieces.extend(texts)
        report = self._watch.report(position)
        if report is None:
            return None
        pieces = list(self._pieces)
        return MemoryView(replace(report, first=position - len(pieces)), pieces, self._zones)
