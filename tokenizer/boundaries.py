"""Where a text may be cut so that its tokens do not change.

A text is a sequence of *runs*. A run is one of

    newlines | U+2581 symbols | spaces and the word after them

so a cut before a space whose predecessor is no space is a *hard boundary*, and so is one on
either side of newlines. No vocabulary piece may cross a hard boundary (`is_within_a_run`;
`SentencePieceTokenizer` checks its whole vocabulary), therefore the parts of a text cut there
encode to the same tokens as the whole.

A run may be long: a page of Chinese, a base64 blob. It is also cut after every `MAX_RUN`
characters, counted from its hard boundary, or else an encoder that reads a stream would have to
hold all of it back. Each such cut is the start of the next count, so all cuts are a pure function
of the text from any earlier cut onwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE_SYMBOL = "\u2581"  # SentencePiece's stand-in for a space
MAX_RUN = 256  # characters; even, so that pairs of newlines stay together
BLOCK = 4096  # characters that SentencePiece gets at once; it slows down on much longer texts

_RUN = re.compile(rf"\n+|{SPACE_SYMBOL}+| +[^ \n{SPACE_SYMBOL}]*|[^ \n{SPACE_SYMBOL}]+")
_MANY_SPACES = " " * (MAX_RUN // 2)


def settled(text: str) -> int:
    """How many characters of `text` lie before its last cut, whatever may follow the text.

    `text` starts at a cut. What remains is the start of a run and shorter than `MAX_RUN`.
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
    """`text`, which starts at a cut, in blocks of at most `BLOCK` characters that end at cuts."""
    start = 0
    while start + BLOCK < len(text):
        block = text[start : start + BLOCK]
        end = settled(block)
        yield block[:end]
        start += end
    if start < len(text):
        yield text[start:]


def segments(block: str) -> list[str]:
    """The parts of `block`, which starts at a cut, that must be encoded one by one.

    Nearly always this is the block itself, because hard boundaries need no cut. Each part is
    either free of U+2581 or made of nothing else.
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
    """Whether `text` can stand in a run: it holds no hard boundary."""
    return _RUN.fullmatch(text) is not None
