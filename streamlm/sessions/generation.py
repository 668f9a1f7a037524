"""Generation: one call that generates text, as pieces or token by token."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from streamlm.runtime.drafter import Drafter
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling, Stops, check_request
from streamlm.runtime.steps import Steps, finish
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.live import LiveStream
from streamlm.sessions.prompt_search import PromptSearch
from streamlm.sessions.sources import OpenSource


class HeldLogprobs:
    """Passes tokens through until a stop string; holds back those that may begin one."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._held = deque[TokenLogprob]()
        self._ready = 0  # characters of the held tokens that are not part of a stop string

    def push(self, token: TokenLogprob) -> tuple[list[TokenLogprob], bool]:
        """Add a token; return those that are ready, and whether a stop string was found.

        The last one then has only the characters before the stop string.
        """
        held, passed = self._held, list[TokenLogprob]()
        held.append(token)
        text, found = self._stops.push(token.text)
        self._ready += len(text)
        while held and len(held[0].text) <= self._ready and not (found and self._ready == 0):
            self._ready -= len(held[0].text)
            passed.append(held.popleft())
        if found and self._ready:
            passed.append(replace(held[0], text=held[0].text[: self._ready]))
        return passed, found

    def left(self) -> list[TokenLogprob]:
        """The tokens held back, once no more follow."""
        return list(self._held)


class Generation:
    """One call of `Session.generate` or `Session.generate_logprobs`.

    Only one of its methods may be called, once.

    Attributes:
        sampling, max_tokens, stops: what was asked for.
        search: for what is recalled; `reading` does it, unless it was done before.

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
        live.require_writable("generate")
        if drafter is not None:
            drafter.check(live.checkpoint)
        self._live = live
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.stops = Stops.at(stop)
        self._seed = seed
        self._drafter = drafter
        self.search = PromptSearch(live, prompt, k=recall)

    def pieces(self) -> Iterator[str]:
        """The generated text, in pieces that never split a character."""
        return self.stops.until(piece for _, piece in self._tokens())

    def logprobs(self, top: int) -> Iterator[TokenLogprob]:
        """The generated tokens; see `Session.generate_logprobs`."""
        held = HeldLogprobs(self.stops)
        for stream, piece in self._tokens():
            token = stream.token_logprob(self._live.checkpoint, piece, top=top)
            ready, found = held.push(token)
            yield from ready
            if found:
                return
        yield from held.left()

    def reading(self, *, by_segment: bool = True) -> Steps[None]:
        """Read the prompt in steps, up to the first token to generate.

        Args:
            by_segment: as in `LiveStream.reading`.
        """
        live, search = self._live, self.search
        if search.k:
            yield from live.ending_text(by_segment=by_segment)
        prompt, spans = search.result()
        prompt = f"\n\n{prompt}" if spans else prompt
        for block in OpenSource(prompt):  # encoding a long prompt at once would take long
            stream = live.stream.take_text(live.checkpoint, block, errors="replace")
            stream = replace(stream, recalled=spans)
            yield from live.reading(stream, live.cursor, by_segment=by_segment)
        yield from live.ending_text(by_segment=by_segment)
        if self._seed is not None:
            live.stream, live.version = live.stream.seeded(self._seed), live.version + 1

    def _tokens(self) -> Iterator[tuple[TextStream, str]]:
        """Read the prompt and generate: the stream after each token, and the token's characters.

        The session may be fed, or closed, between two tokens.
        """
        live = self._live
        finish(self.reading(by_segment=False))
        left = self.max_tokens
        while left:
            before = live.stream
            for stream, id, piece in before.generate_tokens(
                live.checkpoint, self.sampling, self._drafter, limit=left, cache=live.cache
            ):
                live.require_writable("generate")
                if live.stream is not before:
                    break  # saved or fed meanwhile: the rest of the draft is void
                live.move(stream, np.array([id], np.int32), live.cursor)
                before, left = stream, left - 1
                live.save_if_due()
                yield stream, piece
