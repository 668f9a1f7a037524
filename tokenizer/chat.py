"""Conversations as token ids, by the chat template of a model.

    template = ChatTemplate(tokenizer)
    ids = template.turn_ids([], {"role": "user", "content": "Hello"})
    ...                      # the model reads ids, writes a reply, then reads template.reply_end
    ids = template.turn_ids(messages, {"role": "user", "content": "Why?"})

A stream cannot be taken back, so a turn is only ever appended: what a template makes of a
conversation must begin with what it made of the conversation so far.

Special tokens come from the template alone. What stands in a message stays text: before rendering,
the characters that begin or end a special token are replaced by private ones, and restored in the
text between the special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.gguf import from_gguf
from tokenizer.huggingface import from_huggingface
from tokenizer.templates import Template
from tokenizer.tokenizer import Tokenizer

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")
_PRIVATE = range(0xF0000, 0xFFFFE)  # characters of private use


class ChatTemplate:
    """The chat template of a tokenizer's model.

    A template that strips old replies of their thinking, as Qwen3's does, is used as it stands: the
    stream has read the reply as it was written.

    Args:
        tokenizer: a tokenizer that knows its model's chat format.
        variables: more variables of the template, such as enable_thinking.

    Raises:
        ValueError: the tokenizer has no chat template, or it is no Jinja template.
    """

    def __init__(self, tokenizer: Tokenizer, *, variables: Mapping[str, Any] | None = None) -> None:
        chat = tokenizer.chat
        if chat is None or chat.template is None:
            raise ValueError(
                "this model has no chat template; it can continue a text, not answer in a chat: "
                "a model for chat brings a template in its tokenizer_config.json or GGUF file"
            )
        self.tokenizer = tokenizer
        self.variables = dict(variables or {})
        self._chat = chat
        self._template = Template(chat.template)
        named = {text: i for text, i in {**chat.added, **chat.special}.items() if text.strip()}
        self._tokens = named
        longest_first = map(re.escape, sorted(named, key=len, reverse=True))
        self._token = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._ends = sorted({end for text in named for end in (text[0], text[-1]) if end.strip()})

    @classmethod
    def from_huggingface(cls, folder: str | Path, **options: Any) -> ChatTemplate:
        """The template of a Hugging Face directory; errors as of `huggingface.from_huggingface`."""
        return cls(from_huggingface(folder), **options)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], **options: Any) -> ChatTemplate:
        """The template of a GGUF file's metadata; errors as of `gguf.from_gguf`."""
        return cls(from_gguf(metadata), **options)

    @cached_property
    def reply_end(self) -> int:
        """The special token after a reply; a stream reads it whether the model wrote it or not."""
        question, again = ({"role": "user", "content": text} for text in ("a", "b"))
        return self._after_reply([question, {"role": "assistant", "content": "c"}], again)[0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which a reply is complete: `reply_end`, and those that end a text."""
        return tuple(sorted({self.reply_end, *self.tokenizer.eos_ids}))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Special tokens; they come from templates alone."""
        return frozenset(self._chat.special.values())

    def conversation_ids(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> NDArray[np.int32]:
        """The ids of a whole conversation: [n], with bos where the template writes it.

        Args:
            generation_prompt: also what comes before the next reply.

        Raises:
            ValueError: a message has another role or no text, or the template refuses them.
        """
        checked = [_checked(message) for message in messages]
        private, text = self._render(checked, generation_prompt)
        return np.array(self._ids(text, private, first=True), dtype=np.int32)

    def turn_ids(self, before: Sequence[Message], message: Message) -> NDArray[np.int32]:
        """What a stream reads for `message`, up to the model's reply: [n].

        The stream has read what the earlier calls gave, each followed by the reply and `reply_end`;
        without an earlier call, nothing, and so the bos that a template writes is left out.

        Args:
            before: the conversation so far: nothing, or system messages, or turns that end with a
                reply of role "assistant".
            message: the user's.

        Raises:
            ValueError: as `conversation_ids`; the roles have another order; or what the template
                makes of the whole does not begin with what it made of `before`.
        """
        checked, message = [_checked(one) for one in before], _checked(message)
        if message["role"] != "user":
            raise ValueError(f"the new message has role {message['role']!r}; allowed: 'user'")
        if checked and checked[-1]["role"] == "assistant":
            return np.array(self._after_reply(checked, message)[1:], dtype=np.int32)
        if any(one["role"] != "system" for one in checked):
            raise ValueError(
                f"the conversation ends with role {checked[-1]['role']!r}; before a user's message "
                "it must end with a reply of role 'assistant'"
            )
        private, text = self._render([*checked, message], True)
        ids = self._ids(text, private, first=True)
        if ids[:1] == [self.tokenizer.bos_id]:
            del ids[0]
        return np.array(ids, dtype=np.int32)

    def rendered(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """What the template makes of a conversation, as text; errors as of `conversation_ids`."""
        return _restored(self._render([_checked(one) for one in messages], generation_prompt))

    def _after_reply(self, before: list[dict[str, str]], message: dict[str, str]) -> list[int]:
        """The ids after the last reply of `before`, `reply_end` first."""
        *earlier, _ = before
        # The reply itself was written by the model: a mark stands for it.
        marked: list[dict[str, str]] = [*earlier, {"role": "assistant", "content": ""}, message]
        mark = _private_to(marked, self._template.source, 1)[0]
        marked[-2]["content"] = mark
        private, whole = self._render(marked, True)
        start, found, rest = whole.partition(mark)
        if not found or mark in rest:
            raise ValueError("the chat template does not write a reply exactly once")
        so_far = _restored(self._render(earlier, True))
        start = _restored((private, start))
        if not start.startswith(so_far) or start[len(so_far) :].strip():
            raise ValueError(
                "the chat template changes what came before when a message is added: it made "
                f"{so_far[-60:]!r} of the conversation's end, and now {start[-60:]!r}"
            )
        ids = self._ids(rest.lstrip(), private, first=False)
        if not ids or ids[0] not in self._chat.special.values():
            raise ValueError(
                f"the chat template writes no special token after a reply, but {rest[:40]!r}"
            )
        return ids

    def _render(
        self, messages: list[dict[str, str]], generation_prompt: bool
    ) -> tuple[dict[int, int], str]:
        """The rendered text, and the characters to restore in what stands between its tokens."""
        chars = _private_to(messages, self._template.source, len(self._ends))
        hide = dict(zip(map(ord, self._ends), map(ord, chars), strict=True))
        hidden = [{**one, "content": one["content"].translate(hide)} for one in messages]
        text = self._template.render(
            {
                **{"tools": None, "documents": None, **self._chat.names, **self.variables},
                **{"messages": hidden, "add_generation_prompt": generation_prompt},
            }
        )
        return {private: end for end, private in hide.items()}, text

    def _ids(self, text: str, private: dict[int, int], *, first: bool) -> list[int]:
        """The ids of rendered text; `first` if it begins the conversation."""
        ids: list[int] = []
        for n, part in enumerate(self._token.split(text)):
            if part in self._tokens:
                ids.append(self._tokens[part])
            elif part:
                spaced = {"always": True, "first": first and n == 0}
                space = " " if spaced.get(self._chat.space_prefix, False) else ""
                ids += self.tokenizer.encode(space + part.translate(private)).tolist()
        return ids


def _checked(message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"a message has role {role!r}; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"a message's content must be text, given {type(content).__name__}")
    return {"role": role, "content": content}


def _private_to(messages: list[dict[str, str]], source: str, count: int) -> list[str]:
    """Characters of private use that neither the messages nor the template have."""
    used = {char for one in messages for char in one["content"]} | set(source)
    free = (chr(point) for point in _PRIVATE if chr(point) not in used)
    return [char for char, _ in zip(free, range(count), strict=False)]


def _restored(rendered: tuple[dict[int, int], str]) -> str:
    private, text = rendered
    return text.translate(private)
