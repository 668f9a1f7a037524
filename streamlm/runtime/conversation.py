"""Conversation: where a chat within a stream stands, and what a stream reads for the next turn.

A stream forgets, so nothing here grows with the number of turns. A chat template is given the
system prompt and one earlier exchange: what it writes for a new message does not depend on more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from tokenizer.chat import ChatTemplate, Message
from tokenizer.tokenizer import valid_text

LONGEST_SYSTEM = 16_384  # characters; it is part of every snapshot
# Stand-ins for the turns before the newest message.
EARLIER = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclass(frozen=True)
class Conversation:
    """A chat that has begun.

    Attributes:
        system: the system prompt that was given; None where there was none or it is not known.
        open: whether a turn has begun and not ended, such as a reply that was interrupted.
    """

    system: str | None = None
    open: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"system": self.system, "open": self.open}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """The inverse of `to_json`; None for None.

        Raises:
            ValueError: not a value of `to_json`.
        """
        if value is None:
            return None
        fits = isinstance(value, Mapping) and set(value) == {"system", "open"}
        if not fits or not isinstance(value["open"], bool):
            raise ValueError(f"{value!r:.100} is no conversation")
        if value["system"] is not None and not isinstance(value["system"], str):
            raise ValueError(f"{value['system']!r:.100} is no system prompt")
        return cls(value["system"], value["open"])

    def closed(self) -> Self:
        """The conversation after the end of a turn."""
        return replace(self, open=False)


def next_turn(
    template: ChatTemplate,
    conversation: Conversation | None,
    message: str,
    *,
    system: str | None = None,
    history: Sequence[Message] = (),
) -> tuple[np.ndarray, Conversation]:
    """What a stream reads for a message of the user, up to the model's reply: [n] int32.

    Args:
        conversation: where it stands; None before the first message.
        system: the system prompt; None for the template's own, or for the one that was given.
        history: earlier messages, which are read first if the chat has not begun; skipped if it
            has.

    Returns:
        The ids, and the conversation after them.

    Raises:
        ValueError: the message is empty, the system prompt is too long or another than the one the
            conversation began with, or the template refuses them.
    """
    if not message.strip():
        raise ValueError("the message is empty; allowed: text")
    if system is not None:
        system = valid_text(system, "replace")
        if len(system) > LONGEST_SYSTEM:
            raise ValueError(
                f"a system prompt of {len(system):,} characters; allowed: at most "
                f"{LONGEST_SYSTEM:,} (a longer text can be fed before the first message)"
            )
    if conversation is None:
        before = [] if system is None else [{"role": "system", "content": system}]
        user = {"role": "user", "content": message}
        if not history:
            return template.turn_ids(before, user), Conversation(system, open=True)
        ids = template.conversation_ids([*before, *history, user], generation_prompt=True)
        has_bos = ids[:1].tolist() == [template.tokenizer.bos_id]  # a stream begins with it anyway
        return ids[1:] if has_bos else ids, Conversation(system, open=True)
    if system not in (None, conversation.system):
        known = repr(conversation.system)[:100] if conversation.system is not None else "none"
        raise ValueError(
            f"the conversation has begun with another system prompt ({known}); allowed: the same, "
            "none, or a new session"
        )
    first = conversation.system
    before = [] if first is None else [{"role": "system", "content": first}]
    ids = template.turn_ids([*before, *EARLIER], {"role": "user", "content": message})
    if conversation.open:
        ids = np.concatenate([np.array([template.reply_end], np.int32), ids])
    return ids, replace(conversation, open=True)


def conversation_after(
    template: ChatTemplate | None,
    before: Conversation | None,
    ids: np.ndarray,
    *,
    later: Conversation | None = None,
) -> Conversation | None:
    """The conversation after tokens of a stream's log were read again.

    Text has no special tokens, so the newest of them shows where the conversation stands.

    Args:
        template: of the model; None if it has none.
        before: where the conversation stood before `ids`.
        later: where it stands further on in the same stream.
    """
    if template is None:
        return before
    marks = ids[np.isin(ids, sorted(template.special_ids))]
    if not len(marks):
        return before
    system = before.system if before is not None else later.system if later is not None else None
    return Conversation(system, open=int(marks[-1]) != template.reply_end)
