"""Sessions, their branches and their snapshots as HTML; the page's script makes rows clickable."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from apps.demo.render.text_html import escape, message
from apps.demo.shelf import Shelf
from memory_store import Ref
from streamlm.units import tokens_text

SNAPSHOTS = 6  # newest snapshots in the table
MOST_MARKS = 200  # snapshots marked on a bar, the newest ones


@dataclass(frozen=True)
class _Line:
    """A branch as a line: where it leaves the text that it shares with others, and its end."""

    begin: int
    end: int


def sessions_html(shelf: Shelf, current: str) -> str:
    """All sessions as a table, with their branches drawn under them."""
    rows = shelf.rows()
    if not rows:
        return message("There are no sessions yet. Read or write something to create one.")
    of_session = defaultdict(list)
    for row in rows:
        of_session[row.name.partition("@")[0]].append(row)
    lines = []
    for name, branches in of_session.items():
        longest = max(row.position for row in branches)
        for row in branches:
            branch = row.name.partition("@")[2]
            line = _Line(0, row.position)
            if branch and branches[0].name == name:
                line = _Line(_shared(shelf, name, row.name), row.position)
            shown = f"<i>└</i> @{escape(branch)}" if branch and name == branches[0].name else None
            lines.append(
                f'<tr class="{"current" if row.name == current else ""}"><td>'
                f'<button data-submit="#chosen" data-value="{escape(row.name)}" '
                f'title="Open {escape(row.name)}">{shown or escape(row.name)}</button></td>'
                f'<td class="drawn">{_line_svg(line, longest)}</td>'
                f"<td>{row.position:,}</td><td>{_time_text(row.saved)}</td></tr>"
            )
    return (
        '<div class="wide"><table class="shelf"><thead><tr><th>Session</th>'
        '<th class="drawn" aria-label="Drawn"></th><th>Tokens</th><th>Saved</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _shared(shelf: Shelf, name: str, branch: str) -> int:
    """The position of the newest snapshot that a session's main branch shares with another."""
    store, main, other = shelf.store(name), shelf.history(name), shelf.history(branch)
    if store is None or not main or not other:
        return 0
    ends = main[-1], other[-1]
    positions = sorted({ref.position for ref in (*main, *other)})
    positions = positions[: bisect_right(positions, min(ref.position for ref in ends))]

    def differs(position: int) -> bool:
        return store.nearest(ends[0], position) != store.nearest(ends[1], position)

    at = bisect_left(positions, True, key=differs)
    return positions[at - 1] if at else 0


def _line_svg(line: _Line, longest: int) -> str:
    scale = 100 / max(longest, 1)
    begin, end = line.begin * scale, line.end * scale
    fork = f'<path class="fork" d="M{begin:.1f} 0V5"/>' if line.begin else ""
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'{fork}<path d="M{begin:.1f} 5H{max(end, begin + 2):.1f}"/></svg>'
    )


def bar_html(history: Sequence[Ref]) -> str:
    """A session from its first token to its newest, with its snapshots; a touch chooses a point."""
    position = history[-1].position if history else 0
    if not position:
        return ""
    marks = "".join(
        f'<path d="M{1000 * ref.position / position:.1f} 0V10"/>'
        for ref in history[-MOST_MARKS:]
        if ref.position <= position
    )
    return (
        f'<div class="bar" data-position="{position}" '
        f'title="Touch a point to choose it"><svg viewBox="0 0 1000 10" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect width="1000" height="10"/>{marks}'
        f"</svg><p><span>0</span><span>{tokens_text(position)} tokens</span></p></div>"
    )


def timeline_html(history: Sequence[Ref]) -> str:
    """The newest snapshots of a session, newest first."""
    if not history:
        return ""
    rows = "".join(
        f'<tr><td><button data-submit="#pointed" data-value="{ref.position}" '
        f'title="Choose token {ref.position:,}">{ref.seq}</button></td>'
        f"<td>{ref.position:,}</td><td>{_time_text(ref.created)}</td></tr>"
        for ref in reversed(history[-SNAPSHOTS:])
    )
    older = len(history) - SNAPSHOTS
    more = message(f"and {older} older") if older > 0 else ""
    return (
        '<div class="wide"><table class="timeline"><thead><tr><th>Snapshot</th><th>Token</th>'
        f"<th>Saved</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _time_text(seconds: float | None) -> str:
    """A time since 1970 in the server's time zone."""
    if seconds is None:
        return "never"
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds))
