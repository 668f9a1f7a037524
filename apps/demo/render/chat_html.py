"""A chat as HTML: the turns as bubbles, and what was read between them."""

from collections.abc import Sequence

from apps.demo.render.recall_html import TITLE
from apps.demo.render.text_html import escape

SHOWN = 90  # characters shown of each end of a text that was read between turns
NAMES = {"user": "You", "assistant": "Model", "system": "System prompt", "text": "Read"}


def chat_html(messages: Sequence[dict[str, str]], *, writing: bool = False) -> str:
    """The messages of a chat; the page's script keeps its end in view.

    Args:
        messages: see `Quotes.transcript`.
        writing: whether the last one is still being generated.
    """
    if not messages:
        return ""
    last = len(messages) - 1
    turns = "".join(
        _turn(message, writing=writing and n == last) for n, message in enumerate(messages)
    )
    busy = "true" if writing else "false"
    return (
        f'<div class="chat" tabindex="0" role="log" aria-label="The chat" aria-busy="{busy}" '
        f"data-follow>{turns}</div>"
    )


def _turn(message: dict[str, str], *, writing: bool) -> str:
    role, content = message["role"], message["content"].strip()
    if role == "text":
        content = " ".join(content.split())
        if len(content) > 2 * SHOWN:
            content = f"{content[:SHOWN]} … {content[-SHOWN:]}"
    kind = f"{role} writing" if writing else role
    name = NAMES.get(role, role)
    quote = message.get("recalled", "").strip()
    recalled = f"<details><summary>{TITLE}</summary>{escape(quote)}</details>" if quote else ""
    return f'<div class="turn {kind}"><b>{name}</b>{recalled}<p>{escape(content)}</p></div>'
