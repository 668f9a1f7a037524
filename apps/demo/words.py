"""Text as HTML: coloured by surprise, with what else was likely, and beside another reading.

Whatever comes from a visitor, a file or the model goes through `safe`: text never becomes markup.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamlm.runtime.reports import TokenLogprob

FULL_SURPRISE = 12.0  # bits of a token that get the full colour
FULL_DIFFERENCE = 4.0  # bits between two readings that get the full colour
LEAST = 1e-9  # of probabilities that are shown


@dataclass(frozen=True)
class Word:
    """A token that was read: the characters that it completes, and its surprise in bits."""

    text: str
    bits: float


def safe(text: object) -> str:
    """Text as HTML that shows it as it is; the page's templates find nothing to fill in."""
    escaped = html.escape(str(text))
    for character in "{}$`\\":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def message(text: str, *, kind: str = "note") -> str:
    """A sentence for the visitor; kind "error" is read out at once."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="said {kind}" role="{role}">{safe(text)}</p>' if text else ""


def by_surprise(words: Iterable[Word], *, before: str = "") -> str:
    """Text on a ground that is the darker, the more a token surprised the model.

    Args:
        before: text that is shown without colour.
    """
    spans = "".join(
        f'<span style="--s:{min(word.bits / FULL_SURPRISE, 1):.2f}" '
        f'title="{word.bits:.1f} bits">{safe(word.text)}</span>'
        for word in words
    )
    return _page(f'<span class="before">{safe(before)}</span>{spans}', "The text that was read")


def with_choices(choices: Sequence[TokenLogprob], *, before: str = "", prompt: str = "") -> str:
    """Text that was written; each token knows what else was likely, for the page's script.

    Args:
        before: the end of what was read before; prompt: what the visitor wrote.
    """
    spans = "".join(_choice(choice) for choice in choices)
    begun = f'<span class="before">{safe(before)}</span><b>{safe(prompt)}</b>'
    return _page(begun + spans, "The text that was written", walked=bool(choices))


def _choice(choice: TokenLogprob) -> str:
    top = [(text, math.exp(logprob)) for text, logprob in choice.top]
    others = [(text or "�", round(share, 4)) for text, share in top if share > LEAST]
    odds = safe(json.dumps([math.exp(choice.logprob), others], ensure_ascii=False))
    return f'<span class="token" data-odds="{odds}">{safe(choice.text)}</span>'


def beside(words: Sequence[tuple[str, float, float]]) -> str:
    """Text with the tokens coloured that one of two readings found likelier.

    Args:
        words: text, and its bits in the first and in the second reading.
    """
    spans = []
    for text, first, second in words:
        won = "first" if first < second else "second"
        share = min(abs(first - second) / FULL_DIFFERENCE, 1)
        spans.append(
            f'<span class="{won}" style="--s:{share:.2f}" '
            f'title="A {first:.1f} bits, B {second:.1f} bits">{safe(text)}</span>'
        )
    return _page("".join(spans), "The text, by which reading found it likelier")


def _page(body: str, label: str, *, walked: bool = False) -> str:
    walk = ' data-walk="token"' if walked else ""
    return f'<div class="page" tabindex="0" role="region" aria-label="{label}"{walk}>{body}</div>'
