"""Rounds: the steps of an engine's thread, one after the other."""

import threading
from itertools import chain
from typing import Any

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine.batch import Batch
from streamlm.engine.handle import Cancelled
from streamlm.engine.row import Drawn
from streamlm.engine.scheduler import Request, Scheduler
from streamlm.engine.wants import Decode, Turn, Want
from streamlm.runtime.row_sampling import Draw, sample_rows

TURN = 8  # tokens that a turn counts as, at least


class Rounds:
    """Gives the tasks that run their turns, and ends their requests.

    Args:
        changed: is held while the scheduler is changed.
    """

    def __init__(
        self, checkpoint: Checkpoint, scheduler: Scheduler, changed: threading.Condition
    ) -> None:
        self._checkpoint = checkpoint
        self._scheduler = scheduler
        self._changed = changed

    def take(self) -> bool:
        """One segment for one reader, and one token for all writers; False if all wait."""
        scheduler = self._scheduler
        for request in list(scheduler.running):
            if request.handle.cancelled and not request.told:
                self._advance(request, None)
        read = self._read()
        writers: dict[Batch, list[tuple[Request, Decode]]] = {}
        for request, decode in scheduler.writers():
            writers.setdefault(decode.row.batch, []).append((request, decode))
        # All batches take their step before a session may move from one to another.
        decoded = [self._decode(batch, rows) for batch, rows in writers.items()]
        for request, drawn, error in chain(*decoded):
            self._advance(request, drawn, error=error)
        lone = scheduler.wanting(Want.TOKEN)
        for request in (*lone, *scheduler.wanting(Want.WAIT)):
            self._advance(request, None)
        return bool(read or writers or lone)

    def _read(self) -> bool:
        """Give turns to tasks that read, until they have read a segment; False if there are none.

        A turn counts as some tokens even if nothing was read in it: other work was done.
        """
        segment = left = self._checkpoint.model.config.segment_len
        while left > 0:
            request = self._scheduler.next_reader()
            if request is None:
                break
            self._advance(request, None)
            read = request.want.tokens if isinstance(request.want, Turn) else 0
            left -= max(read, TURN)
        return left < segment

    def _decode(
        self, batch: Batch, writers: list[tuple[Request, Decode]]
    ) -> list[tuple[Request, Drawn | None, Exception | None]]:
        """One token for every row of a batch that is written, or the error for all of them."""
        tokens = [0] * batch.rows
        draws: list[Draw | None] = [None] * batch.rows
        for _, decode in writers:
            tokens[decode.row.index] = decode.row.stream.pending
            draws[decode.row.index] = decode.draw
        try:
            hidden = batch.step(tokens)
            drawn = sample_rows(self._checkpoint.model.logits(hidden), draws)
        except Exception as error:  # out of memory, say: those who write end, the engine does not
            return [(request, None, error) for request, _ in writers]
        rows = ((request, decode.row.index) for request, decode in writers)
        return [(request, Drawn(drawn[row], hidden[row : row + 1]), None) for request, row in rows]

    def _advance(
        self, request: Request, drawn: Drawn | None, *, error: Exception | None = None
    ) -> None:
        """Run a task to its next step, and end the request with it.

        Args:
            error: to raise in the task.
        """
        # What was drawn belongs to the row, which has read the token before it: first that.
        if request.handle.cancelled and not request.told and drawn is None:
            request.told = True
            error = error or Cancelled("the request was cancelled")
        raised_at = None if error is None else error.__traceback__
        try:
            task = request.task
            request.want = task.send(drawn) if error is None else task.throw(error)
        except StopIteration as ended:
            self._end(request, ended.value, None)
        except BaseException as failure:  # it is the caller's, who gets it from the handle
            if failure is error:  # all writers of a step get the same one, and not each other's way
                failure.__traceback__ = raised_at
            self._end(request, None, failure)

    def _end(self, request: Request, result: Any, error: BaseException | None) -> None:
        request.want = None
        with self._changed:
            self._scheduler.remove(request)
        request.handle.end(result, error)
