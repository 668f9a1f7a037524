"""The messages of a chat that a stream has read, found in its token ids.

A template is rendered with marks for the contents. What it writes around them delimits the turns.
Special tokens are told from their spelling in a text by standing as lone surrogates, which no text
contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from tokenizer.chat import ChatTemplate
from tokenizer.stream import StreamDecoder

SURROGATES = 0xD800  # the first of them; there are 2,048
_SYSTEM, _REPLY, _USER = "\uf8f0", "\uf8f1", "\uf8f2"  # characters of private use


def messages_of(
    template: ChatTemplate, ids: Sequence[int] | NDArray[np.int32]
) -> list[dict[str, str]]:
    """The messages within token ids, oldest first, each with "role" and "content".

    Args:
        ids: a part of what a stream has read.

    Returns:
        Messages of the roles system, user and assistant, and "text" for what stands outside of
        turns. The last reply may be incomplete. Of a turn that begins before `ids` nothing remains.
    """
    return list(_Pattern(template).messages(ids))


class _Pattern:
    """What a template writes around the contents of messages."""

    def __init__(self, template: ChatTemplate) -> None:
        self._tokenizer, chat = template.tokenizer, template.tokenizer.chat
        assert chat is not None
        marks = {text: chr(SURROGATES + n) for n, text in enumerate(sorted(chat.special)[:2048])}
        self._marks = {chat.special[text]: mark for text, mark in marks.items()}
        longest_first = map(re.escape, sorted((text for text in marks if text), key=len)[::-1])
        named = re.compile("|".join(longest_first) or "(?!)")

        def rendered(*messages: dict[str, str]) -> str:
            text = template.rendered(messages, generation_prompt=True)
            return named.sub(lambda found: marks[found[0]], text)

        user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
        first = rendered(user).removeprefix(self._marks.get(self._tokenizer.bos_id, ""))
        self._end = self._marks[template.reply_end]
        before, _, self._after = first.partition(_USER)
        between = rendered({"role": "user", "content": "a"}, reply, user).partition(_REPLY)[2]
        between = between.partition(_USER)[0].partition(self._end)[2]
        # What stands before a user's message in the first turn and in later ones.
        alike = takewhile(
            lambda pair: pair[0] == pair[1], zip(before[::-1], between[::-1], strict=False)
        )
        self._before = "".join(char for char, _ in alike)[::-1].lstrip("\n")
        self._system: re.Pattern[str] | None = None
        try:
            whole = rendered({"role": "system", "content": _SYSTEM}, user)
        except ValueError:  # the template takes no system prompt
            return
        head = whole.removeprefix(self._marks.get(self._tokenizer.bos_id, ""))
        start, found, rest = head.partition(_SYSTEM)
        stop = rest.partition(self._before + _USER)[0]
        if found and start.strip() and stop.strip():
            self._system = re.compile(f"{re.escape(start)}(.*?){re.escape(stop)}", re.DOTALL)

    def messages(self, ids: Sequence[int] | NDArray[np.int32]) -> Iterator[dict[str, str]]:
        text = self._text(ids)
        delimited = bool(self._before and self._after)
        first, *turns = text.split(self._before) if delimited else [text]
        yield from self._outside(first, first=True)
        for part in turns:
            content, replied, rest = part.partition(self._after)
            if not replied:  # the message was cut by rewinding into it
                content, _, rest = part.partition(self._end)
                yield _message("user", content)
            else:
                yield _message("user", content)
                reply, _, rest = rest.partition(self._end)
                yield _message("assistant", reply)
            yield from self._outside(rest)

    def _outside(self, text: str, *, first: bool = False) -> Iterator[dict[str, str]]:
        """The messages of a text between turns."""
        if self._system is not None and (found := self._system.search(text)):
            yield from self._outside(text[: found.start()], first=first)
            yield _message("system", found[1])
            text = text[found.end() :]
        elif first and self._end in text:  # the turn began earlier
            text = text.rpartition(self._end)[2]
        if content := _plain(text).strip():
            yield {"role": "text", "content": content}

    def _text(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of ids, special tokens as surrogates."""
        array = np.asarray(ids)
        at = np.flatnonzero(np.isin(array, list(self._marks)))
        parts, start = [], 0
        for stop in at.tolist():
            parts += [self._tokenizer.decode(array[start:stop]), self._marks[int(array[stop])]]
            start = stop + 1
        # A character may still be incomplete at the end.
        return "".join([*parts, StreamDecoder(self._tokenizer).decode(array[start:])])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": _plain(content)}


def _plain(text: str) -> str:
    """Text without special tokens."""
    return re.sub("[\ud800-\udfff]", "", text)
