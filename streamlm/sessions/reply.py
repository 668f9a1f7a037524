"""Reply: one call that reads a message of a chat and generates the model's reply."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from streamlm.runtime.conversation import next_turn
from streamlm.runtime.sampling import Sampling, Stops, check_request
from streamlm.runtime.steps import Steps, finish
from streamlm.sessions.live import LiveStream
from streamlm.sessions.prompt_search import PromptSearch
from tokenizer.chat import Message


class Reply:
    """One call of `Session.reply`.

    Attributes:
        sampling, max_tokens, stops: what was asked for.
        search: for what is recalled; `reading` does it, unless it was done before.

    Args:
        live: the stream to continue.
        message, sampling, system, max_tokens, stop, seed, recall: as in `Session.reply`.
        history: as in `next_turn`.

    Raises:
        ValueError: the model has no chat template, a value is not allowed, or the session may not
            be changed.
    """

    def __init__(
        self,
        live: LiveStream,
        message: str,
        sampling: Sampling,
        *,
        system: str | None,
        max_tokens: int,
        stop: str | Iterable[str],
        seed: int | None,
        recall: int = 0,
        history: Sequence[Message] = (),
    ) -> None:
        check_request(max_tokens, seed)
        live.require_writable("reply")
        template, conversation = live.checkpoint.chat, live.stream.conversation
        next_turn(template, conversation, message, system=system, history=history)
        self._live = live
        self.sampling = sampling
        self._system = system
        self.max_tokens = max_tokens
        self.stops = Stops.at(stop)
        self._seed = seed
        self.search = PromptSearch(live, message, k=recall)
        self._history = history

    def pieces(self) -> Iterator[str]:
        """The reply, in pieces that never split a character."""
        return self.stops.until(self._tokens())

    def reading(self) -> Steps[None]:
        """Read the message in steps, up to the reply.

        Nothing of it is read before all of it is.
        """
        live = self._live
        live.require_writable("reply")
        yield from live.ending_text()
        message, spans = self.search.result()
        stream = live.stream if self._seed is None else live.stream.seeded(self._seed)
        ids, conversation = next_turn(
            live.checkpoint.chat,
            stream.conversation,
            message,
            system=self._system,
            history=self._history,
        )
        stream = yield from stream.reading_ids(live.checkpoint, ids, cache=live.cache)
        live.move(replace(stream, conversation=conversation, recalled=spans), ids, live.cursor)
        live.save_if_due()

    def _tokens(self) -> Iterator[str]:
        """Read the message and generate: the characters of each token.

        The session may be saved between two tokens. If anything else was done with it, the reply
        has ended.
        """
        live = self._live
        finish(self.reading())
        for n_said in range(self.max_tokens):
            stream, id, piece = live.stream.reply_token(
                live.checkpoint, self.sampling, live.cache, n_said=n_said
            )
            live.require_writable("reply")
            live.move(stream, np.array([id], np.int32), live.cursor)
            live.save_if_due()
            version, position = live.version, live.position
            if piece:
                yield piece
            assert stream.conversation is not None
            if not stream.conversation.open or (live.version, live.position) != (version, position):
                return
