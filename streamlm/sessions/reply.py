"""Reply: one call that reads a message of a chat and generates the model's reply."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from streamlm.runtime.conversation import next_turn
from streamlm.runtime.sampling import Sampling, Stops, check_request
from streamlm.sessions.live import LiveStream


class Reply:
    """One call of `Session.reply`.

    Args:
        live: the stream to continue.
        message, sampling, system, max_tokens, stop, seed, recall: as in `Session.reply`.

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
    ) -> None:
        check_request(max_tokens, seed)
        live.require_writable("reply")
        next_turn(live.checkpoint.chat, live.stream.conversation, message, system=system)
        live.check_recall(recall, message)
        self._live = live
        self._message = message
        self._sampling = sampling
        self._system = system
        self._max_tokens = max_tokens
        self._stops = Stops.at(stop)
        self._seed = seed
        self._recall = recall

    def pieces(self) -> Iterator[str]:
        """The reply, in pieces that never split a character."""
        return self._stops.until(self._tokens())

    def _tokens(self) -> Iterator[str]:
        """Read the message and generate: the characters of each token.

        The session may be saved between two tokens. If anything else was done with it, the reply
        has ended.
        """
        live = self._live
        live.require_writable("reply")
        live.end_text()
        message, spans = live.with_recalled(self._message, k=self._recall)
        before = live.stream if self._seed is None else live.stream.seeded(self._seed)
        stream, ids = before.read_turn(
            live.checkpoint, message, system=self._system, cache=live.cache
        )
        live.move(replace(stream, recalled=spans), ids, live.cursor)
        live.save_if_due()
        for n_said in range(self._max_tokens):
            stream, id, piece = live.stream.reply_token(
                live.checkpoint, self._sampling, live.cache, n_said=n_said
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
