"""Format sizes, times, durations and counts as text; parse times."""

import re
from datetime import datetime, timedelta


def size_text(n: float) -> str:
    """Format a number of bytes: 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def time_text(seconds: float) -> str:
    """Format a Unix time in the local time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def parse_time(text: str) -> datetime:
    """Parse a date with optional time of day, or a time span before now ("90m").

    Raises:
        ValueError: the text is neither; lists the allowed forms.
    """
    ago = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])(?:\s+ago)?\s*", text)
    try:
        if ago:
            unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[ago[2]]
            return datetime.now().astimezone() - timedelta(**{unit: float(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            f"time {text!r}; allowed: 2026-03-01, 2026-03-01 18:30, with +02:00 or without, or "
            "how long ago: 45s, 90m, 2h, 3d"
        ) from None


def duration_text(seconds: float) -> str:
    """Format a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def tokens_text(n: float) -> str:
    """Format a number of tokens for the tick of an axis: 1k, 32k, 2M.

    Powers of two from 1,024 on are counted in 1,024s, as memories are: 32,768 is 32k.
    """
    if n >= 1024 and n == int(n) and not int(n) & (int(n) - 1):
        return f"{int(n) >> 20}M" if n >= 1 << 20 else f"{int(n) >> 10}k"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if round(n / size, 2) >= 1:
            return f"{n / size:.3g}{letter}"
    return f"{n:.3g}"
