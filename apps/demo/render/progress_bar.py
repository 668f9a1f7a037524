"""The progress of reading as HTML."""

from streamlm.runtime.reports import Progress
from streamlm.units import duration_text


def progress_bar(progress: Progress, *, skipped: int) -> str:
    """A bar, with the share read, the speed, the time left and the bits per byte so far.

    Args:
        skipped: bytes that an earlier, interrupted call had already read.
    """
    report = progress.report
    share = progress.read / progress.size if progress.size else 0.0
    fresh = max(progress.read - skipped, 1)
    left = (progress.size or progress.read) - progress.read
    facts = [f"{share:.0%}", f"{report.tokens:,} tokens"]
    if skipped:
        facts.append(f"resumed at byte {skipped:,}")
    if report.tokens_per_second:
        facts.append(f"{report.tokens_per_second:,.0f} tokens/s")
    if left and report.seconds:
        facts.append(f"{duration_text(left * report.seconds / fresh)} left")
    if report.bits_per_byte is not None:
        facts.append(f"{report.bits_per_byte:.2f} bits per byte")
    return (
        f'<div class="progress"><div role="progressbar" aria-label="Reading" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}">'
        f'</div></div><p role="status">{" · ".join(facts)}</p></div>'
    )
