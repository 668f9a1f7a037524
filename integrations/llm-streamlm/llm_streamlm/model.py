"""StreamlmModel: a model of streamlm for `llm`. Each conversation is a session."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import TextPart
from pydantic import Field

from llm_streamlm.turns import Message, Turns

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.sessions.session import Session

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class StreamlmModel(llm.Model):
    """A model that chats, if it has a chat template, or continues a text.

    Args:
        name: of the model, after `streamlm/`.
        folder: where sessions are stored.
        source: an argument of `streamlm.load`; None is the name.
        settings: see `streamlm.load`.
    """

    can_stream = True

    class Options(llm.Options):
        """The sampling settings. What is not given has the defaults of `streamlm chat`, or, for a
        model without a chat template, of `streamlm generate`."""

        max_tokens: int | None = Field(None, ge=0, description="Maximum number of tokens.")
        temperature: float | None = Field(None, description="Divides the logits; 0 is greedy.")
        top_k: int | None = Field(None, description="Sample from the k likeliest; 0 is off.")
        top_p: float | None = Field(
            None, description="Sample from the top tokens with this total probability."
        )
        min_p: float | None = Field(
            None, description="Drop tokens below this fraction of the top probability."
        )
        repetition_penalty: float | None = Field(None, description="Above 1 penalizes repetition.")
        stop: str | None = Field(None, description="Stop at this text.")
        seed: int | None = Field(None, description="Seed of the random generator.")
        recall: int | None = Field(
            None,
            ge=0,
            description="Passages that left memory to put before the prompt, if they answer it. "
            "Default: 1 for a chat that goes on.",
        )
        keep: bool = Field(True, description="Store the session, so that llm -c goes on with it.")

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        source: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_id = f"streamlm/{name}"
        self._folder = folder
        self._source = name if source is None else source
        self._settings = settings
        self._loaded: Checkpoint | None = None

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Read what is new in the conversation, and generate.

        Raises:
            ValueError: an option is not allowed, or the model cannot read the messages.
            memory_store.Locked: another process uses the session.
        """
        messages = plain_messages(prompt)
        with ExitStack() as stack:
            session, turns = self._open(prompt, conversation, stack)
            read, start = turns.known(messages) if turns is not None else (0, 0)
            if start > session.position:  # the record is ahead of a session that was restored
                read, start = 0, 0
            if start < session.position:  # a reply was interrupted, or the messages are others
                session.rewind(to=start)
            said: list[str] = []
            for piece in self._generate(session, messages, read, prompt, response):
                said.append(piece)
                yield piece
            if turns is not None:
                session.save()
                reply = [("assistant", "".join(said))] if said else []
                turns.add([*messages, *reply], session.position, start=start)
            response.response_json = {"position": session.position}

    def _open(
        self, prompt: llm.Prompt, conversation: llm.Conversation | None, stack: ExitStack
    ) -> "tuple[Session, Turns | None]":
        """The session of a conversation, with its record; one in memory if none is to be stored."""
        import streamlm
        from streamlm.sessions.shelf import locate

        checkpoint = self._checkpoint()
        if conversation is None or not prompt.options.keep:
            return streamlm.Session(checkpoint), None
        path = Path(locate(str(self._folder), conversation.id)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        session = stack.enter_context(streamlm.open(path, checkpoint))
        return session, Turns(path.with_suffix(".turns"))

    def _checkpoint(self) -> "Checkpoint":
        if self._loaded is None:
            import streamlm

            self._loaded = streamlm.load(self._source, settings=self._settings)
        return self._loaded

    def _generate(
        self,
        session: "Session",
        messages: list[Message],
        read: int,
        prompt: llm.Prompt,
        response: llm.Response,
    ) -> Iterator[str]:
        """Read the messages from `read` on, and generate."""
        from streamlm.engine import Engine
        from streamlm.runtime.sampling import Sampling

        chat = session.checkpoint.tokenizer.chat
        chats = chat is not None and chat.template is not None
        start, system = session.position, system_prompt(prompt, messages)
        defaults: dict[str, float] = {}
        if chats:
            defaults = {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}
            text = read_turns(session, messages, read, system=system)
        elif system is not None:
            raise ValueError(
                f"a system prompt for {self.model_id}, which has no chat template; allowed: a text "
                "to continue"
            )
        else:
            text = one_text(messages, read)
        options = prompt.options
        given = {name: getattr(options, name) for name in SAMPLING}
        sampling = Sampling(**defaults | {n: v for n, v in given.items() if v is not None})
        recall = options.recall
        if recall is None:
            recall = int(chats and read > 0 and session.saved is not None)
        common: dict[str, Any] = {"seed": options.seed, "recall": recall}
        common["stop"] = options.stop or ()
        if options.max_tokens is not None:
            common["max_tokens"] = options.max_tokens
        with Engine(session.checkpoint, rows=1) as engine:
            if chats:
                handle = engine.reply(session, text, sampling, system=system, **common)
            else:
                handle = engine.generate(session, text, sampling, **common)
            yield from handle
            written = handle.result()
        response.set_usage(input=session.position - start - written, output=written)


def plain_messages(prompt: llm.Prompt) -> list[Message]:
    """The texts of a conversation, prompt included; calls of tools and the like are left out."""
    found = []
    for message in prompt.messages:
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        if message.role in ("system", "user", "assistant") and any(texts):
            found.append((message.role, "".join(texts)))
    return found


def system_prompt(prompt: llm.Prompt, messages: list[Message]) -> str | None:
    """The system prompt that is given now, or else that of the conversation."""
    return prompt.system or next((text for role, text in messages if role == "system"), None)


def read_turns(
    session: "Session", messages: list[Message], read: int, *, system: str | None
) -> str:
    """Read the turns of a chat up to the newest message; returns that message.

    Args:
        read: how many messages the session has read.

    Raises:
        ValueError: the conversation does not end with a message of the user.
    """
    if not messages or messages[-1][0] != "user":
        raise ValueError("there is no message to reply to; allowed: a prompt")
    for role, text in messages[read:-1]:
        if role == "user":
            list(session.reply(text, system=system, max_tokens=0))
        elif role == "assistant":  # within the turn that the message began
            list(session.generate(text, max_tokens=0))
    return messages[-1][1]


def one_text(messages: list[Message], read: int) -> str:
    """The messages from `read` on as one text.

    A prompt begins a paragraph, unless it begins with white space.
    """
    text = ""
    for number, (role, part) in enumerate(messages[read:], start=read):
        begins = role == "user" and number > 0 and not part[:1].isspace()
        text += f"\n\n{part}" if begins else part
    return text
