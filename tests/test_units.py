"""Numbers of tokens on axes."""

import pytest

from streamlm.units import tokens_text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"), (1, "1"), (4, "4"), (256, "256"), (1000, "1k"), (1024, "1k"), (2000, "2k"),
        (4096, "4k"), (20_000, "20k"), (32_768, "32k"), (59_956, "60k"), (65_536, "64k"),
        (1 << 20, "1M"), (1_000_000, "1M"), (2_500_000, "2.5M"),
    ],
)  # fmt: skip
def test_ticks_are_short(n: int, text: str) -> None:
    assert tokens_text(n) == text
