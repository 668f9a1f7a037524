"""Text as HTML: coloured by surprise, with token alternatives, or comparing two readings.

Everything that comes from a visitor, a file or the model passes through `escape`, so that text
never becomes markup.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamlm.runtime.reports import TokenLogprob

FULL_SURPRISE = 12.0  # bits of surprise drawn in full colour
FULL_DIFFERENCE = 4.0  # bits between two readings drawn in full colour
MIN_PROBABILITY = 1e-9  # the least probability shown among the alternatives


@dataclass(frozen=True)
class ScoredToken:
    """A token that was read: the characters that it completes, and its surprise in bits."""

    text: str
    bits: float


def escape(text: object) -> str:
    """Escape text as literal HTML, including the characters that Gradio's templates expand."""
    escaped = html.escape(str(text))
    for character in "{}$`\\":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def message(text: str, *, kind: str = "note") -> str:
    """One sentence for the visitor, "" if empty. Screen readers announce kind "error" at once."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="message {kind}" role="{role}">{escape(text)}</p>' if text else ""


def surprise_html(tokens: Iterable[ScoredToken], *, before: str = "") -> str:
    """Text on a background that is darker where a token surprised the model more.

    The page's script keeps its end in view.

    Args:
        before: uncoloured text that precedes the tokens.
    """
    spans = "".join(
        f'<span style="--s:{min(token.bits / FULL_SURPRISE, 1):.2f}" '
        f'title="{token.bits:.1f} bits">{escape(token.text)}</span>'
        for token in tokens
    )
    body = f'<span class="before">{escape(before)}</span>{spans}'
    legend = (
        '<p class="legend surprise"><span>expected</span><i></i>'
        f"<span>surprising, {FULL_SURPRISE:.0f} bits or more</span></p>"
    )
    return _page(body, "The text just read", "data-follow") + legend


def generated_html(tokens: Sequence[TokenLogprob], *, before: str = "", prompt: str = "") -> str:
    """Generated text; each token carries its alternatives for the page's script.

    The page's script keeps its end in view. An alternative that is part of a character cannot be
    taken in place of the token.

    Args:
        before: the end of what the session had read; prompt: what the visitor typed.
    """
    spans = "".join(map(_token, tokens))
    context = f'<span class="before">{escape(before.lstrip())}</span><b>{escape(prompt)}</b>'
    attributes = "data-follow data-by-token" if tokens else "data-follow"
    return _page(context + spans, "The generated text", attributes)


def _token(token: TokenLogprob) -> str:
    top = [(text, math.exp(logprob)) for text, logprob in token.top]
    others = [(text or "�", round(p, 4)) for text, p in top if p > MIN_PROBABILITY]
    odds = escape(json.dumps([math.exp(token.logprob), others], ensure_ascii=False))
    return f'<span class="token" data-odds="{odds}">{escape(token.text)}</span>'


def comparison_html(tokens: Sequence[tuple[str, float, float]]) -> str:
    """Text with each token in the colour of the reading that predicted it better.

    Args:
        tokens: text, bits in the first reading, bits in the second.
    """
    spans = []
    for text, first, second in tokens:
        winner = "first" if first < second else "second"
        share = min(abs(first - second) / FULL_DIFFERENCE, 1)
        spans.append(
            f'<span class="{winner}" style="--s:{share:.2f}" '
            f'title="A {first:.1f} bits, B {second:.1f} bits">{escape(text)}</span>'
        )
    return _page("".join(spans), "The text, coloured by the reading that predicted it better")


def _page(body: str, label: str, attributes: str = "") -> str:
    region = f'tabindex="0" role="region" aria-label="{label}" {attributes}'
    return f'<div class="page" {region}>{body}</div>'
