"""Sizes as people say them in a claim."""


def size_text(n: float) -> str:
    """A number of bytes with two or three digits: 1.6 MB, 246 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(n, 1) < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" or n >= 99.95 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
