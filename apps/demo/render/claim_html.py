"""The claim of the whole page: memory stays constant, where keeping every token would not."""

from apps.demo.render.numbers import size_text
from streamlm.units import tokens_text

FIRST_END = 1_000  # tokens at the right end of the axis of a stream that begins
STEPS = (1, 2, 4, 8)  # the axis ends at these times a power of ten
ROOM = 1.1  # the least ratio of the axis to the line


def claim_html(position: int, *, slots: int, slot_bytes: int) -> str:
    """The claim in one line, and its two quantities by tokens read, as growing lines.

    Args:
        slots: those that the memory can hold; slot_bytes: bytes of one.
    """
    ours, every = slots * slot_bytes, position * slot_bytes
    end = axis_end(position)
    top = max(end, ROOM * slots)  # slots at the upper end of the other axis
    across, steep, flat = 100 * position / end, 100 - 100 * position / top, 100 - 100 * slots / top
    return (
        f'<div class="claim"><p role="status"><b>{position:,}</b> tokens read · '
        f'<b class="ours">memory {size_text(ours)}</b>, constant · keeping every token would need '
        f'<b class="every">{size_text(every)}</b></p>'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline class="every" points="0,100 {across:.2f},{steep:.2f}"/>'
        f'<polyline class="ours" points="0,{flat:.2f} {across:.2f},{flat:.2f}"/></svg>'
        f'<p class="axis"><span>0</span><span>{tokens_text(end)} tokens</span></p></div>'
    )


def axis_end(position: int) -> int:
    """The right end of an axis on which a line grows to `position`."""
    power = FIRST_END
    while True:
        for step in STEPS:
            if ROOM * position <= step * power:
                return step * power
        power *= 10
