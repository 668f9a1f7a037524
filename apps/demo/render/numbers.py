"""Numbers as people write them on axes and in claims."""


def tokens_text(n: float) -> str:
    """1,024 → "1k", 32,768 → "33k", 65,536 → "66k", 2,000,000 → "2M"; for ticks."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if round(n / size, 2) >= 1:
            return f"{n / size:.2g}{letter}" if n < 100 * size else f"{n / size:.0f}{letter}"
    return f"{n:.3g}"


def size_text(n: float) -> str:
    """A number of bytes with two or three digits: 1.6 MB, 246 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(n, 1) < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" or n >= 99.95 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
