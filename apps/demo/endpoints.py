"""The demo as an API: functions for `gradio_client`, and tools for MCP clients."""

import gradio as gr

from apps.demo import reading, uploads, writing
from apps.demo.desk import LONG, QUICK, Desk, visitor
from apps.demo.shelf import Refused
from apps.demo.work import Job
from streamlm.runtime.reports import TokenLogprob


def add_endpoints(desk: Desk) -> None:
    """Offer the functions; within the page's context."""

    def list_sessions(request: gr.Request) -> list[dict]:
        """List the sessions: name, tokens read, and when each was saved.

        Returns:
            One object for each session or branch: name, position, saved (seconds since 1970).
        """
        return [vars(row) for row in _shelf(request).rows()]

    def read_text(session: str, text: str, request: gr.Request) -> dict:
        """Read a text into a session's memory. The session is begun if there is none.

        Args:
            session: its name, NAME or NAME@BRANCH.
            text: what to read; the newest word may wait until more comes.

        Returns:
            position: tokens of the session afterwards; message: what was read, in words.
        """
        told = []
        with _telling():
            words = uploads.checked(text, "The text")
            shelf, checkpoint = _shelf(request), desk.checkpoint

            def work(job: Job) -> None:
                reading.read(job, shelf, session, text=words, checkpoint=checkpoint)

            for items in desk.jobs.run(work, visitor=visitor(request)):
                told += items
        if not told:
            raise gr.Error("It was stopped.")
        return {"position": told[-1].position, "message": told[-1].end or "It was stopped."}

    def write_on(
        session: str,
        prompt: str = "",
        max_tokens: int = 120,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = -1,
        stop: str = "",
        request: gr.Request = None,
    ) -> str:
        """Write on where a session stands; what is written becomes part of it.

        Args:
            session: its name, NAME or NAME@BRANCH; begun if there is none.
            prompt: text to read first.
            max_tokens: tokens to write, at most 1000.
            temperature: 0 always takes the likeliest token.
            top_p: keep the likeliest tokens up to this sum.
            seed: of the random numbers; -1 goes on with the session's own.
            stop: texts to stop before, one on each line, in which \\n stands for a new line.

        Returns:
            The text that was written.
        """
        pieces = []
        with _telling():
            from streamlm.runtime.sampling import Sampling  # needs torch

            shelf, checkpoint = _shelf(request), desk.checkpoint
            sampling = Sampling(temperature=temperature, top_p=top_p)
            if not 0 <= max_tokens <= writing.MAX_TOKENS:
                raise ValueError(f"max_tokens = {max_tokens}; allowed: 0 to {writing.MAX_TOKENS}")

            def work(job: Job) -> None:
                writing.write(
                    job,
                    shelf,
                    session,
                    prompt=prompt,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    stops=writing.stops_of(stop),
                    seed=None if seed < 0 else seed,
                    checkpoint=checkpoint,
                )

            for items in desk.jobs.run(work, visitor=visitor(request)):
                pieces += [item.text for item in items if isinstance(item, TokenLogprob)]
        return "".join(pieces)

    def score_text(session: str, text: str, request: gr.Request) -> float:
        """How well a session predicts a text, in bits per byte; the session is not changed.

        Args:
            session: its name, NAME or NAME@BRANCH.
            text: the text to predict.

        Returns:
            Bits per byte; less is better.
        """
        with _telling():
            shelf, checkpoint = _shelf(request), desk.checkpoint
            words = uploads.checked(text, "The text")

            def work(job: Job) -> float:
                with shelf.open(session, checkpoint, readonly=True) as opened:
                    return opened.score(words).bits_per_byte or 0.0

            found: float = desk.jobs.do(work, visitor=visitor(request))
            return found

    def recall(session: str, request: gr.Request) -> dict:
        """What a session remembers: its slots, what each stands for, and how much is lost.

        Args:
            session: its name, NAME or NAME@BRANCH.

        Returns:
            position, slot_bytes and slots; each slot has its text, kind, attention and loss.
        """
        with _telling():
            seen = desk.look(_shelf(request), session, visitor=visitor(request))
            if seen is None:
                raise ValueError(f"{session} has read nothing yet.")
            found, first = seen.report.to_dict(), seen.report.first
            for slot in found["slots"]:
                start, stop = (max(0, slot[end][0] - first) for end in ("start", "stop"))
                slot["text"] = "".join(seen.pieces[start:stop])
            return found

    def rewind(session: str, position: int, request: gr.Request) -> int:
        """Take a session back to an earlier position; its history keeps what came after.

        Args:
            session: its name, NAME or NAME@BRANCH.
            position: tokens from the beginning.

        Returns:
            The position afterwards.
        """
        with _telling():
            shelf, checkpoint = _shelf(request), desk.checkpoint

            def work(job: Job) -> int:
                with shelf.open(session, checkpoint) as opened:
                    opened.rewind(tokens=position)
                    return opened.position

            found: int = desk.jobs.do(work, visitor=visitor(request))
            return found

    def fork(session: str, branch: str, request: gr.Request) -> str:
        """Begin a branch where a session stands; nothing is copied.

        Args:
            session: its name, NAME or NAME@BRANCH.
            branch: the name of the new branch.

        Returns:
            The name of the fork, NAME@BRANCH.
        """
        with _telling():
            shelf, checkpoint = _shelf(request), desk.checkpoint

            def work(job: Job) -> str:
                return shelf.fork(session, branch, checkpoint, tokens=None)

            found: str = desk.jobs.do(work, visitor=visitor(request))
            return found

    _shelf = desk.shelf
    for long in (read_text, write_on, score_text):
        gr.api(long, api_name=long.__name__, **LONG)
    for quick in (list_sessions, recall, rewind, fork):
        gr.api(quick, api_name=quick.__name__, **QUICK)


class _telling:
    """Turns refusals into errors that a client sees as words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (Refused, ValueError)):
            raise gr.Error(str(error), print_exception=False) from None
