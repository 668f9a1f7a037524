"""Positions at which a text can be cut without changing its byte-level BPE tokens.

A byte-level BPE splits a text by a pattern, then merges within each match. No match of a pattern in
`tokenizer.patterns` contains

- a space (U+0020) after a character that is no white space, or
- white space or one of the signs in `_AFTER_WORD` after an ASCII letter or digit, an ideograph, a
  kana or a Hangul syllable,

so a *hard boundary* lies between the two: the parts of a text cut there have the tokens of the
whole. The place after a newline is none, because a match may hold newlines and what surrounds them.

The text between two hard boundaries, a *run*, can be long: a base64 blob, a thousand spaces, Thai
without punctuation. It is also cut after every `MAX_RUN` characters, counted from its hard
boundary, so that a streaming encoder holds back a bounded tail. Only those cuts change tokens.
As in `tokenizer.boundaries`, the cuts are a pure function of the text from any earlier cut onwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_RUN = 1024  # characters
BLOCK = 4096  # characters encoded at once

_WORD = "0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_AFTER_WORD = re.compile(f"(?<=[{_WORD}])[\t\n\v\f\r ,.;:!?、。，；：！？]")


def settled(text: str) -> int:
    """The position of the last cut in `text`, the same for every continuation of the text.

    `text` starts at a cut. The rest is the start of a run, shorter than `MAX_RUN`.
    """
    run = _last_boundary(text, 0, len(text) - 1)
    return run + (len(text) - run) // MAX_RUN * MAX_RUN


def parts(text: str) -> Iterator[str]:
    """Split `text`, which starts at a cut, into parts that must be encoded separately.

    A part ends where a run exceeds `MAX_RUN`, or at the first chance after `BLOCK` characters.
    """
    start = at = 0
    while len(text) - at > MAX_RUN:
        cut = _last_boundary(text, at, at + MAX_RUN)
        forced = cut == at
        if forced:
            cut += MAX_RUN
        if forced or cut - start >= BLOCK:
            yield text[start:cut]
            start = cut
        at = cut
    if start < len(text):
        yield text[start:]


def _last_boundary(text: str, start: int, end: int) -> int:
    """The last hard boundary in `text` after `start`, up to and including `end`; else `start`."""
    space = text.rfind(" ", start + 1, end + 1)
    while space > start and text[space - 1].isspace():
        space = text.rfind(" ", start + 1, space)
    last = max(start, space)
    for match in _AFTER_WORD.finditer(text, last + 1, end + 1):
        last = match.start()
    return last
