"""Numbers as text: decimal points and commas, missing values, and writing them the same way."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "null", "none", "-", "--", "?", ".", "nat"}
GROUPS = r"[ \u00a0\u202f']"  # between thousands, whatever the decimal sign
# Decimal point or comma: a number whose thousands may be grouped by the other sign.
NUMBER = {
    decimal: re.compile(
        rf"[-+]?(?:[1-9]\d{{0,2}}(?:{re.escape(other)}\d{{3}})+|"
        rf"[1-9]\d{{0,2}}(?:{GROUPS}\d{{3}})+|\d+)?"
        rf"(?:{re.escape(decimal)}\d*)?(?:[eE][-+]?\d+)?"
    )
    for decimal, other in ((".", ","), (",", "."))
}
SIGNED = re.compile(r"[-+]?[\d.,'\u00a0\u202f ]*\d[\d.,'\u00a0\u202f ]*")
THREE = re.compile(r"[-+]?\d{1,3}(?:[.,]\d{3})+")


@dataclass(frozen=True)
class Numbers:
    """A column of numbers.

    Attributes:
        values: [n] float64, NaN where none is given.
        wrong: rows whose text is neither a number nor missing.
        digits: the most digits after the decimal sign.
    """

    values: np.ndarray
    wrong: list[int]
    digits: int


def numbers(texts: Sequence[str], decimal: str) -> Numbers:
    """Read a column of numbers."""
    if (quick := _plain(texts)) is not None:
        return quick
    values = np.full(len(texts), math.nan)
    wrong, digits = [], 0
    for row, text in enumerate(texts):
        if text.lower() in MISSING:
            continue
        if not NUMBER[decimal].fullmatch(text) or not any(sign.isdigit() for sign in text):
            wrong.append(row)
            continue
        plain = re.sub(GROUPS, "", text).replace("." if decimal == "," else ",", "")
        plain = plain.replace(",", ".")
        values[row] = float(plain)
        if not math.isfinite(values[row]):
            wrong.append(row)
        mantissa, _, exponent = plain.lower().partition("e")
        digits = max(digits, len(mantissa.partition(".")[2]) - int(exponent or 0))
    return Numbers(values, wrong, digits)


def _plain(texts: Sequence[str]) -> Numbers | None:
    """A column without missing values, groups and exponents; None if it has any."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    if not np.isfinite(values).all() or any(sign in text for text in texts for sign in "_eE"):
        return None
    return Numbers(values, [], max(len(text.partition(".")[2]) for text in texts))


def decimal_sign(columns: Sequence[Sequence[str]], delimiter: str) -> str | tuple[int, str]:
    """The decimal sign of a file, or the row and text that could be read either way.

    A comma before three digits can group thousands or begin decimals; other texts decide.
    """
    doubtful: tuple[int, str] | None = None
    point = comma = True
    for texts in columns:
        for row, text in enumerate(texts):
            if "," not in text and not (delimiter == ";" and "." in text):
                continue
            if not SIGNED.fullmatch(text):
                continue
            point &= NUMBER["."].fullmatch(text) is not None
            comma &= NUMBER[","].fullmatch(text) is not None
            if "," in text or THREE.fullmatch(text):
                doubtful = doubtful or (row, text)
    if doubtful is None or not point or not comma:
        return "," if comma and not point else "."
    return "." if delimiter == "," else doubtful


def decimals(digits: int, spread: float) -> int:
    """Digits to show: the file's if few, otherwise three significant ones of the spread."""
    if 1 <= digits <= 3:
        return digits
    needed = max(0, 2 - math.floor(math.log10(spread))) if spread > 0 else 2
    return min(needed, digits) if digits else min(needed, 2)


def number_text(value: float, digits: int, decimal: str, *, grouped: bool = True) -> str:
    """A number with grouped thousands and the file's decimal sign: 52,315.7 or 52.315,7."""
    text = f"{value:,.{digits}f}" if grouped else f"{value:.{digits}f}"
    if text.strip("-0.,") == "":
        text = text.lstrip("-")  # no minus zero
    return text.translate({44: ".", 46: ","}) if decimal == "," else text
