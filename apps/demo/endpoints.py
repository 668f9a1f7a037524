"""The API of the demo: functions for `gradio_client`, and tools for MCP clients."""

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from apps.demo import chatting, reading, recalling, uploads, writing
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.arguments import checked_types
from apps.demo.jobs import Job
from apps.demo.shelf import Refused
from streamlm.engine import Busy
from streamlm.runtime.reports import TokenLogprob


def add_endpoints(app: AppState) -> None:
    """Add the functions to the page that is being built."""

    def list_sessions(request: gr.Request) -> list[dict]:
        """List the sessions: their names, tokens read, and times of saving.

        Returns:
            One object per session or branch: name, position, saved (seconds since 1970).
        """
        return [vars(row) for row in _shelf(request).rows()]

    def read_text(session: str, text: str, request: gr.Request) -> dict:
        """Read a text into a session's memory, creating the session if it does not exist.

        Args:
            session: its name, NAME or NAME@BRANCH.
            text: the text to read; its last word may be held back until more text arrives.

        Returns:
            position: tokens of the session afterwards; message: a summary of the read.
        """
        progress = []
        with _gradio_errors():
            content = uploads.checked(text, "The text")
            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)

            def work(job: Job) -> None:
                reading.read(job, shelf, session, text=content, engine=engine)

            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                progress += events
        if not progress:
            raise gr.Error("The job was cancelled.")
        last = progress[-1]
        return {"position": last.position, "message": last.summary or "The job was cancelled."}

    def generate_text(
        session: str,
        prompt: str = "",
        max_tokens: int = 120,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = -1,
        stop: str = "",
        recall: int = 0,
        request: gr.Request = None,
    ) -> str:
        """Continue a session: generate text from its current state. The text becomes part of it.

        Args:
            session: its name, NAME or NAME@BRANCH; created if it does not exist.
            prompt: text to read first.
            max_tokens: tokens to generate, at most 1000.
            temperature: 0 always chooses the likeliest token.
            top_p: sample from the likeliest tokens whose probabilities add up to this.
            seed: of the random generator; -1 continues the session's own.
            stop: stop strings, one per line, in which \\n stands for a line break.
            recall: put up to so many passages that answer the prompt before it, at most 3.

        Returns:
            The generated text.
        """
        pieces = []
        with _gradio_errors():
            from streamlm.runtime.sampling import Sampling  # needs torch

            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)
            sampling = Sampling(temperature=temperature, top_p=top_p, min_p=writing.MIN_P)
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
                    stops=writing.parse_stops(stop),
                    seed=None if seed < 0 else seed,
                    engine=engine,
                    recall=recall,
                )

            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                pieces += [event.text for event in events if isinstance(event, TokenLogprob)]
        return "".join(pieces)

    def chat(
        session: str,
        message: str,
        system: str = "",
        max_tokens: int = 400,
        temperature: float = 0.2,
        top_p: float = 0.9,
        seed: int = -1,
        recall: int = 0,
        request: gr.Request = None,
    ) -> str:
        """Say something to a session's model and return its reply. Both become part of the session.

        Args:
            session: its name, NAME or NAME@BRANCH; created if it does not exist.
            message: what is said, at most 8,000 characters.
            system: the system prompt of a chat that begins; empty for the model's own.
            max_tokens: tokens of the reply, at most 1000.
            temperature: 0 always chooses the likeliest token.
            top_p: sample from the likeliest tokens whose probabilities add up to this.
            seed: of the random generator; -1 continues the session's own.
            recall: put up to so many passages that answer the message before it, at most 3.

        Returns:
            The reply.
        """
        pieces: list[str] = []
        with _gradio_errors():
            from streamlm.runtime.sampling import Sampling  # needs torch

            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)
            sampling = Sampling(temperature=temperature, top_p=top_p, repetition_penalty=1.1)
            if not 0 <= max_tokens <= chatting.MAX_TOKENS:
                raise ValueError(f"max_tokens = {max_tokens}; allowed: 0 to {chatting.MAX_TOKENS}")

            def work(job: Job) -> None:
                chatting.reply(
                    job,
                    shelf,
                    session,
                    message=message,
                    system=system.strip() or None,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    engine=engine,
                    quotes=app.quotes,
                    seed=None if seed < 0 else seed,
                    recall=recall,
                )

            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                pieces += [event for event in events if isinstance(event, str)]
        return "".join(pieces)

    def score_text(session: str, text: str, request: gr.Request) -> float:
        """Score a text given everything the session has read. The session is not modified.

        Args:
            session: its name, NAME or NAME@BRANCH.
            text: the text to predict.

        Returns:
            Bits per byte; lower is better.
        """
        with _gradio_errors():
            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)
            content = uploads.checked(text, "The text")

            def work(job: Job) -> None:
                with shelf.open(session, engine.checkpoint, readonly=True) as opened:
                    job.emit(job.result(engine.score(opened, content)))

            for (report,) in app.jobs.stream(work, visitor=visitor_id(request)):
                return report.bits_per_byte or 0.0
        raise gr.Error("The job was cancelled.")

    def recall(session: str, text: str, k: int = 1, request: gr.Request = None) -> list[dict]:
        """Find the passages that answer a question, among all that has left a session's memory.

        Args:
            session: its name, NAME or NAME@BRANCH.
            text: a question, or the beginning of the sentence that is looked for.
            k: the maximum number of passages, 1 to 3.

        Returns:
            Best first: text, start and stop in tokens, score from 0 to 1, sure (whether it is taken
            to answer), saved (ISO 8601, or null).
        """
        with _gradio_errors():
            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)

            found = recalling.find(shelf, session, text, engine=engine, k=k)
            return [
                {**vars(each), "saved": each.saved.isoformat() if each.saved else None}
                for each in found.passages
            ]

    def inspect_memory(session: str, request: gr.Request) -> dict:
        """Inspect a session's memory: its slots, the text behind each, and how much of it is lost.

        Args:
            session: its name, NAME or NAME@BRANCH.

        Returns:
            position, slot_bytes and slots; each slot has its text, kind, attention and loss.
        """
        with _gradio_errors():
            view = app.memory_view(_shelf(request), session, visitor=visitor_id(request))
            if view is None:
                raise ValueError(f"{session} has read nothing yet.")
            report, first = view.report.to_dict(), view.report.first
            for slot in report["slots"]:
                start, stop = (max(0, slot[end][0] - first) for end in ("start", "stop"))
                slot["text"] = "".join(view.pieces[start:stop])
            return report

    def rewind(session: str, position: int, request: gr.Request) -> int:
        """Rewind a session to an earlier position; its history keeps what came after.

        Args:
            session: its name, NAME or NAME@BRANCH.
            position: tokens from the start.

        Returns:
            The position afterwards.
        """
        with _gradio_errors():
            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)

            shelf.rewind(session, engine, tokens=position)
            return position

    def fork(session: str, branch: str, request: gr.Request) -> str:
        """Create a branch at a session's current position; nothing is copied.

        Args:
            session: its name, NAME or NAME@BRANCH.
            branch: the name of the new branch.

        Returns:
            The name of the fork, NAME@BRANCH.
        """
        with _gradio_errors():
            shelf = _shelf(request)
            engine = app.engine_of(shelf, session)
            return shelf.fork(session, branch, engine, tokens=None)

    _shelf = app.shelf
    for long in (read_text, generate_text, chat, score_text):
        gr.api(_checking(long), api_name=long.__name__, **LONG)
    for quick in (list_sessions, recall, inspect_memory, rewind, fork):
        gr.api(_checking(quick), api_name=quick.__name__, **QUICK)


def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arguments are checked, and whose refusals reach the client."""
    checked = checked_types(function)

    @functools.wraps(function)
    def refusing(*given: Any, **named: Any) -> Any:
        with _gradio_errors():
            return checked(*given, **named)

    return refusing


class _gradio_errors:
    """Turns refusals into Gradio errors, whose messages reach the client."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, gr.Error):  # a ValueError too
            return
        if isinstance(error, (Refused, ValueError, OverflowError, Busy)):
            # Gradio's page would show markup as such.
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
