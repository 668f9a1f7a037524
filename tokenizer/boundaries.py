"""Positions at which a text can be cut without changing its tokens.

A text is a sequence of *runs*. A run is one of

    newlines | U+2581 symbols | spaces and the word after them

A *hard boundary* lies before a space that follows a character other than a space, and on either
side of newlines. No vocabulary piece crosses a hard boundary (`is_within_a_run`, checked by
`SentencePieceTokenizer` for the whole vocabulary), so the parts of a text cut there encode to the
same tokens as the whole.

A run can be long: a page of Chinese, a base64 blob. It is also cut after every `MAX_RUN`
characters, counted from its hard boundary, so that a streaming encoder holds back a bounded tail.
Each such cut starts the next count: the cuts are a pure function of the text from any earlier cut
onwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE_SYMBOL = "\u2581"  # SentencePiece's replacement for a space
MAX_RUN = 256  # characters; even, so that pairs of newlines stay together
BLOCK = 4096  # characters per SentencePiece call; longer texts slow it down

_RUN = re.compile(rf"\n+|{SPACE_SYMBOL}+| +[^ \n{SPACE_SYMBOL}]*|[^ \n{SPACE_SYMBOL}]+")
_MANY_SPACES = " " * (MAX_RUN // 2)


def settled(text: str) -> int:
    """The position of the last cut in `text`, the same for every continuation of the text.

    `text` starts at a cut. The rest is the start of a run, shorter than `MAX_RUN`.
    """
    if not text:
        return 0
    last = text[-1]
    if last in " \n" or last == SPACE_SYMBOL:
        run = len(text.rstrip(last))
    else:
        run = max(text.rfind(" "), text.rfind("\n"), text.rfind(SPACE_SYMBOL)) + 1
        if run and text[run - 1] == " ":
            run = len(text[:run].rstrip(" "))
    return run + (len(text) - run) // MAX_RUN * MAX_RUN


def blocks(text: str) -> Iterator[str]:
    """Split `text`, which starts at a cut, into blocks of up to `BLOCK` characters, at cuts."""
    start = 0
    while start + BLOCK < len(text):
        block = text[start : start + BLOCK]
        end = settled(block)
        yield block[:end]
        start += end
    if start < len(text):
        yield text[start:]


def segments(block: str) -> list[str]:
    """The parts of `block`, which starts at a cut, that must be encoded separately.

    Usually the block itself, since hard boundaries need no cut. Each part is either free of U+2581
    or consists of it alone.
    """
    if (
        SPACE_SYMBOL not in block
        and _MANY_SPACES not in block
        and max(map(len, block.split(" "))) <= MAX_RUN // 2
    ):
        return [block]  # no run is longer than MAX_RUN
    parts = []
    for run in _RUN.findall(block):
        if len(run) <= MAX_RUN:
            parts.append(run)
        else:
            parts += [run[i : i + MAX_RUN] for i in range(0, len(run), MAX_RUN)]
    return parts


def is_within_a_run(text: str) -> bool:
    """Whether `text` contains no hard boundary, so that it can be part of a run."""
    return _RUN.fullmatch(text) is not None
