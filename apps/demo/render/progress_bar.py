"""The progress of reading as HTML."""

from streamlm.runtime.reports import ReadReport
from streamlm.units import duration_text


def progress_bar(report: ReadReport, *, size: int, ended: bool = False) -> str:
    """A bar, with the share read, the speed, the time left and the bits per byte so far.

    Args:
        size: of the text in bytes.
        ended: all of it was read, but for a last word that is held back.
    """
    skipped = report.skipped_bytes
    read = size if ended else skipped + report.n_bytes
    share, left = read / size if size else 0.0, size - read
    facts = [f"{share:.0%}", f"{report.tokens:,} tokens"]
    if skipped:
        facts.append(f"resumed at byte {skipped:,}")
    if report.tokens_per_second:
        facts.append(f"{report.tokens_per_second:,.0f} tokens/s")
    if left and report.seconds:
        facts.append(f"{duration_text(left * report.seconds / max(report.n_bytes, 1))} left")
    if report.bits_per_byte is not None:
        facts.append(f"{report.bits_per_byte:.2f} bits per byte")
    return (
        f'<div class="progress"><div role="progressbar" aria-label="Reading" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}">'
        f'</div></div><p role="status">{" · ".join(facts)}</p></div>'
    )
