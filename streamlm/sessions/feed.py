"""Feed: one call that reads sources block by block, and its report."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal

from streamlm.config import check_whole
from streamlm.runtime.reports import Progress, ProgressCallback, ReadReport
from streamlm.runtime.steps import Steps, finish
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.live import LiveStream
from streamlm.sessions.sources import (
    MAX_FED,
    FeedCursor,
    OpenSource,
    Source,
    resume_sources,
)
from streamlm.sessions.waiting import SavingWhileWaiting

Errors = Literal["strict", "replace"]


class Feed:
    """One call of `Session.feed` or `Session.score`.

    Args:
        live: the stream to read into.
        sources, errors, logprobs, once, block_bytes, progress: as in `Session.feed`.

    Raises:
        ValueError, FileNotFoundError, IsADirectoryError, PermissionError: as `Session.feed`.
    """

    def __init__(
        self,
        live: LiveStream,
        sources: Sequence[Source],
        *,
        errors: Errors,
        logprobs: bool,
        once: bool = False,
        block_bytes: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        if block_bytes is not None:
            check_whole("block_bytes", block_bytes, least=1)
        if not sources:
            raise ValueError("no source given; allowed: paths, texts, file objects, iterators")
        self._live = live
        self._sources = [OpenSource(source, block_bytes=block_bytes) for source in sources]
        if once and not all(source.is_file for source in self._sources):
            other = next(source.name for source in self._sources if not source.is_file)
            raise ValueError(f"once = True with {other}; allowed: with files, given as paths")
        self._once = once
        self._errors: Errors = errors
        self._logprobs = logprobs
        self._progress = progress
        self._report = ReadReport()
        self._by_segment = False
        self._read = not once  # whether anything was, so that there is something to save
        self._started = time.perf_counter()

    def feed(self, *, score: bool) -> ReadReport:
        """Read the sources, from where an interrupted call stopped, and save."""
        finish(self.feeding(score=score, by_segment=False))
        if self._live.store is not None:
            self._live.save(self._live.ended_cursor)
        return self.ended()

    def feeding(self, *, score: bool, by_segment: bool = True) -> Steps[None]:
        """`feed` in steps, without the save at the end; `ended` returns the report.

        Args:
            by_segment: as in `LiveStream.reading`.
        """
        live, score = self._live, score or self._logprobs
        self._by_segment = by_segment
        live.end_turn()
        for n_tokens in self._feeding(score):
            self._report.position = live.position
            yield n_tokens
        if live.store is not None and (self._read or live.cursor != live.ended_cursor):
            live.version += 1

    def _feeding(self, score: bool) -> Steps[None]:
        live, report = self._live, self._report
        fed = list(live.cursor.fed) if live.cursor is not None else []
        done = resume_sources(live.cursor, self._sources).done
        if any(map(self._recorded, self._sources)):
            self._skip_fed(done, fed)
        report.skipped_bytes = sum(source.n_bytes for source in self._sources)
        if report.skipped_bytes:  # the text ahead came from these bytes but is still to be read
            lengths = live.checkpoint.tokenizer.token_lengths
            report.skipped_bytes -= int(lengths[live.stream.ahead].sum())
        if len(live.stream.ahead):
            yield from self._reading(live.stream, live.cursor, score=score)
        for source in self._sources[len(done) :]:
            with SavingWhileWaiting(live) as saving:
                blocks = iter(source)
                while True:
                    with saving.waiting() if source.waits else nullcontext():
                        block = next(blocks, None)
                    if block is None:
                        break
                    self._read, known = True, self._with_fed(fed, source)
                    cursor = FeedCursor(done, source.n_bytes, source.digest, known)
                    yield from self._reading(self._with_block(source, block), cursor, score=score)
                    self._show_progress(source)
            done, fed = [*done, source.digest], self._with_fed(fed, source)
        if not any(source.n_bytes for source in self._sources):
            raise ValueError(f"nothing to read: {self._names()} is empty")

    def _recorded(self, source: OpenSource) -> bool:
        """Whether what is read of a source is recorded, and skipped by later calls."""
        return source.follows or (self._once and not source.is_separator)

    def _skip_fed(self, done: list[str], fed: list[list[Any]]) -> None:
        """Skip what was fed before, of the sources that are not done."""
        left = list(fed)
        for n, source in enumerate(self._sources[: len(done) + 1]):  # the cursor has skipped them
            entry = [done[n] if n < len(done) else source.digest, source.n_bytes]
            if entry in left:
                left.remove(entry)
        rest = self._sources[len(done) :]
        for source in rest:
            if self._recorded(source) and not source.n_bytes:
                source.seek_behind(left)
        for source, following in pairwise(rest):
            if source.is_separator and following.n_bytes:
                source.skip()

    def _with_fed(self, fed: list[list[Any]], source: OpenSource) -> list[list[Any]]:
        """What was fed, with what was read of a source so far."""
        if not self._recorded(source) or not source.n_bytes:
            return fed
        skipped = [source.skipped_digest, source.skipped]
        at = fed.index(skipped) if skipped in fed else len(fed)
        entry = [source.digest, source.n_bytes]
        return [*fed[:at], *fed[at + 1 :], entry][-MAX_FED:]

    def ended(self) -> ReadReport:
        """The report of a feed that has ended and was saved."""
        self._live.cursor = self._live.ended_cursor
        self._update_times()
        self._report.position = self._live.position
        return self._report

    def score(self) -> ReadReport:
        """Score the sources to their last character; `live` is a fork made for this call."""
        finish(self.scoring(by_segment=False))
        return self._report

    def scoring(self, *, by_segment: bool = True) -> Steps[None]:
        """`score` in steps.

        Args:
            by_segment: as in `LiveStream.reading`.
        """
        live, report = self._live, self._report
        position, self._by_segment = live.position, by_segment
        yield from live.ending_text(by_segment=by_segment)
        for source in self._sources:
            for block in source:
                yield from self._reading(self._with_block(source, block), None, score=True)
                self._show_progress(source)
        yield from live.ending_text(report, keep=self._logprobs, by_segment=by_segment)
        if not report.tokens:
            raise ValueError(f"nothing to score: {self._names()} is empty")
        self._update_times()
        report.position = position

    @property
    def report(self) -> ReadReport:
        """What was read so far."""
        return self._report

    def _reading(
        self, stream: TextStream, cursor: FeedCursor | None, *, score: bool
    ) -> Steps[None]:
        for n_tokens in self._live.reading(
            stream,
            cursor,
            self._report,
            score=score,
            keep=self._logprobs,
            by_segment=self._by_segment,
        ):
            self._update_times()
            yield n_tokens

    def _with_block(self, source: OpenSource, block: str | bytes) -> TextStream:
        """The stream with a block to be read."""
        strict, live = self._errors == "strict", self._live
        if strict and isinstance(block, bytes) and b"\0" in block:  # also from a pipe or a device
            raise ValueError(
                f"{source.name} looks binary: it has a NUL byte; allowed: UTF-8 text "
                "(errors 'replace' reads it all the same)"
            )
        try:
            stream = live.stream.take_text(live.checkpoint, block, errors=self._errors)
        except ValueError as error:
            size = len(block.encode()) if isinstance(block, str) else len(block)
            at = source.n_bytes - size
            raise ValueError(f"{source.name}, block at byte {at}: {error}") from None
        if strict and source.ends_whole and stream.tail["bytes"]:
            raise ValueError(f"{source.name} ends within a UTF-8 character")
        return stream

    def _show_progress(self, source: OpenSource) -> None:
        if self._progress is not None:
            now = Progress(source.name, source.n_bytes, source.size, self._report)
            self._progress(now)

    def _update_times(self) -> None:
        self._report.seconds = time.perf_counter() - self._started

    def _names(self) -> str:
        return ", ".join(source.name for source in self._sources)
