"""Chatting: the part of a session that holds a conversation."""

from collections.abc import Iterable, Iterator

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import check_whole
from streamlm.runtime.conversation import Conversation
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.live import LiveStream
from streamlm.sessions.reply import Reply
from tokenizer.transcript import messages_of


class Chatting:
    """A session as a conversation; see `Session`, which begins it."""

    checkpoint: Checkpoint
    _live: LiveStream

    @property
    def conversation(self) -> Conversation | None:
        """Where the chat stands; None before the first message."""
        return self._live.stream.conversation

    def reply(
        self,
        message: str,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        temperature: float = 0.2,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.1,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        recall: int = 0,
    ) -> Iterator[str]:
        """Read a message and generate the model's reply. Both become part of the stream.

        A chat is a part of the stream, so the model knows what was fed before it or between two
        messages. Special tokens come from the model's chat template alone; in a message they are
        text.

        Args:
            message: the user's. It is read as a whole or, after an interruption, not at all.
            system: the system prompt, which only the first message can have. Later the same or none
                may be given. Where there is none, the template may have one of its own.
            max_tokens: the maximum number of tokens of the reply.
            temperature, top_k, top_p, min_p: see `Sampling`.
            repetition_penalty: see `Sampling`; of the tokens of this reply only.
            stop: strings at which to stop. The first match is read but not returned.
            seed: reseeds the random generator; None continues with the session's own.
            recall: put up to so many passages before the message, those that surely answer it; see
                `Session.recall`.

        Returns:
            An iterator of pieces of text that never split a character. If the caller stops early,
            or the reply has `max_tokens`, the session has read the reply so far. It ends when the
            next message or other text is read; `generate` continues it.

        Raises:
            ValueError: immediately, if the model has no chat template or a value is not allowed.
        """
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        reply = Reply(
            self._live,
            message,
            sampling,
            system=system,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            recall=recall,
        )
        return self._live.one_thread.each(reply.pieces(), "reply")

    def transcript(self, *, tokens: int = 4096) -> list[dict[str, str]]:
        """The newest turns of the chat, oldest first, as messages with "role" and "content".

        The roles are system, user, assistant, and "text" for what was fed or generated outside of
        turns.

        Args:
            tokens: how many of the newest tokens to look at.

        Raises:
            ValueError: the model has no chat template, or the session has no store.
        """
        check_whole("tokens", tokens, least=1)
        bound = self._live.require_store("return its transcript")
        ids = bound.tokens(max(0, self._live.position - tokens), self._live.position)
        return messages_of(self.checkpoint.chat, ids)
