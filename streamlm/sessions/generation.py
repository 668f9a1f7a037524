"""Generation: one call that generates text, as pieces or token by token."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from streamlm.runtime.drafter import Drafter
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling, Stops, check_request
from streamlm.runtime.text_stream import RecalledSpan, TextStream
from streamlm.sessions.live import LiveStream


class Generation:
    """One call of `Session.generate` or `Session.generate_logprobs`.

    Only one of its methods may be called, once.

    Args:
        live: the stream to continue.
        prompt, sampling, max_tokens, stop, seed, drafter, recall: as in `Session.generate`.

    Raises:
        ValueError: a value is not allowed, or the session may not be changed.
    """

    def __init__(
        self,
        live: LiveStream,
        prompt: str,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: str | Iterable[str],
        seed: int | None,
        drafter: Drafter | None = None,
        recall: int = 0,
    ) -> None:
        check_request(max_tokens, seed)
        live.check_recall(recall, prompt)
        live.require_writable("generate")
        if drafter is not None:
            drafter.check(live.checkpoint)
        self._live = live
        self._prompt = prompt
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._stops = Stops.at(stop)
        self._seed = seed
        self._drafter = drafter
        self._recall = recall

    def pieces(self) -> Iterator[str]:
        """The generated text, in pieces that never split a character."""
        return self._stops.until(piece for _, piece in self._tokens())

    def logprobs(self, top: int) -> Iterator[TokenLogprob]:
        """The generated tokens; see `Session.generate_logprobs`."""
        held = deque[TokenLogprob]()
        ready = 0  # characters of the held tokens that are not part of a stop string
        for stream, piece in self._tokens():
            held.append(stream.token_logprob(self._live.checkpoint, piece, top=top))
            text, found = self._stops.push(piece)
            ready += len(text)
            while held and len(held[0].text) <= ready and not (found and ready == 0):
                ready -= len(held[0].text)
                yield held.popleft()
            if found:
                if ready:
                    yield replace(held[0], text=held[0].text[:ready])
                return
        yield from held

    def _tokens(self) -> Iterator[tuple[TextStream, str]]:
        """Read the prompt and generate: the stream after each token, and the token's characters.

        The session may be fed, or closed, between two tokens.
        """
        live, prompt = self._live, self._prompt
        spans: tuple[RecalledSpan, ...] = ()
        if self._recall:
            live.end_text()
            prompt, spans = live.with_recalled(prompt, k=self._recall)
            prompt = f"\n\n{prompt}" if spans else prompt
        if prompt:
            stream = live.stream.take_text(live.checkpoint, prompt, errors="replace")
            live.read(replace(stream, recalled=spans), live.cursor)
        live.end_text()
        if self._seed is not None:
            live.stream, live.version = live.stream.seeded(self._seed), live.version + 1
        left = self._max_tokens
        while left:
            before = live.stream
            for stream, id, piece in before.generate_tokens(
                live.checkpoint, self._sampling, self._drafter, limit=left, cache=live.cache
            ):
                live.require_writable("generate")
                if live.stream is not before:
                    break  # saved or fed meanwhile: the rest of the draft is void
                live.move(stream, np.array([id], np.int32), live.cursor)
                before, left = stream, left - 1
                live.save_if_due()
                yield stream, piece
