"""Recalled passages as HTML: the text, what it shares with the question, and its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.demo.render.text_html import escape, message

if TYPE_CHECKING:  # it needs torch
    from streamlm.sessions.recall import Recalled

TITLE = "Recalled from what was read"
BEST = "The best passages of what was read"
NONE = "Recalled: none. Nothing that has left memory surely answers this."
NOTHING_FOUND = "Nothing was found. Only what has left memory is searched."
LEXICAL = "This model has no retrieval heads, so passages are found by rare words alone."
WIDTH, HEIGHT, LEAST = 400, 6, 3  # of the stream's bar, and the least width of a mark


@dataclass(frozen=True)
class Recollection:
    """What a text recalls.

    Attributes:
        passages: best first.
        position: of the session when it was asked.
        rare: rare words of the text, in lower case.
        lexical: whether passages are found by rare words alone.
    """

    passages: Sequence[Recalled]
    position: int
    rare: frozenset[str] = frozenset()
    lexical: bool = False


def recalled_html(found: Recollection) -> str:
    """A panel with the passages that were put before a prompt."""
    if not found.passages:
        return message(NONE)
    facts = [_facts(passage, found.position) for passage in found.passages]
    return _panel(TITLE, found, facts)


def found_html(found: Recollection) -> str:
    """A panel with the best passages for a question, some of which may not answer it."""
    how = message(LEXICAL) if found.lexical else ""
    if not found.passages:
        return message(NOTHING_FOUND) + how
    facts = [
        f"{_facts(passage, found.position)} · {'sure' if passage.sure else 'not sure'}"
        for passage in found.passages
    ]
    return _panel(BEST, found, facts) + how


def _panel(title: str, found: Recollection, facts: Sequence[str]) -> str:
    figures = "".join(
        f'<figure class="recall{"" if passage.sure else " unsure"}">'
        f'<p class="quote">{_lit(passage.text, found.rare)}</p>{_bar(passage, found.position)}'
        f"<figcaption>{about}</figcaption></figure>"
        for passage, about in zip(found.passages, facts, strict=True)
    )
    return f'<section class="recalled" aria-label="{title}"><b>{title}</b>{figures}</section>'


def _facts(passage: Recalled, position: int) -> str:
    saved = f"saved {passage.saved:%d %b %Y, %H:%M}" if passage.saved else "not saved yet"
    return f"token {passage.start:,} of {position:,} · {saved} · score {passage.score:.2f}"


def _lit(text: str, rare: frozenset[str]) -> str:
    """Text with the words that are in `rare` marked."""
    if not rare:
        return escape(text)
    word = f"(?:{'|'.join(map(re.escape, sorted(rare)))})"
    phrase = re.compile(rf"(?<!\w)({word}(?: {word})*)(?!\w)", re.IGNORECASE)
    parts = phrase.split(text)  # what is marked is every second part
    return "".join(
        f"<mark>{escape(part)}</mark>" if n % 2 else escape(part) for n, part in enumerate(parts)
    )


def _bar(passage: Recalled, position: int) -> str:
    """The stream from its beginning to `position`, with the passage's place in it."""
    scale = WIDTH / max(position, 1)
    width = max((passage.stop - passage.start) * scale, LEAST)
    left = min(passage.start * scale, WIDTH - width)
    share = passage.start / max(position, 1)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Its place in the stream: after {share:.0%}">'
        f'<rect class="background" x="0" y="0" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}"/></svg>'
    )
