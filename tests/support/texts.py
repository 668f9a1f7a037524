"""Texts for tests of tokenizers, and ways to cut them."""

from typing import Any

from hypothesis import strategies as st

from tokenizer.boundaries import MAX_RUN

SYMBOL = "\u2581"

# Small but multilingual: the tiny model has pieces of two spaces, accented letters and Chinese
# characters.
CORPUS = """It was the best of times, it was the worst of times, it was the age of wisdom, it was
the age of foolishness, it was the epoch of belief, it was the epoch of incredulity.

    It was the season of Light,  it was the season of Darkness;
    it was the spring of hope,  it was the winter of despair.

道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。
Où sont les neiges d'antan? Mais où sont les neiges d'antan? 1859, 1895, 1589.
"""

TRAPS = [
    *("<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0xE2>", " ⁇ ", "\u2047", "\u2585"),
    *(SYMBOL, f"a{SYMBOL}b", f" {SYMBOL} ", f"\n{SYMBOL}\n", "\0", "a\0b", "\ufffd", "\ufeff"),
    *("\r\n", "\t", "\f\n", "\n\n\n", " \n ", "  two", "\u00a0", "\u2028", "e\u0301", "ﬁ", "Å"),
    *(
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳\ufe0f\u200d🌈",
        "漢字かな",
        "한국어",
        "العربية",
        "\U0010ffff",
        "the ",
        " of the",
        "12345",
        "--",
    ),
]
UNITS = st.sampled_from(["x", " ", "\n", SYMBOL, "é", "漢", "ab", " \n"])
RUNS = st.builds(str.__mul__, UNITS, st.integers(1, 3 * MAX_RUN))
SHORT = st.lists(st.one_of(st.text(), st.sampled_from(TRAPS)), max_size=4).map("".join)
TEXTS = st.lists(st.one_of(st.text(), st.sampled_from(TRAPS), RUNS), max_size=8).map("".join)
CUTS = st.lists(st.integers(0, 2**31), max_size=6)


def split(whole: Any, cuts: list[int]) -> list[Any]:
    """A str or bytes in `len(cuts) + 1` parts, some of them perhaps empty."""
    places = sorted(cut % (len(whole) + 1) for cut in cuts)
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
