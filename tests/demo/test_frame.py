"""Optional numbers as visitors type them."""

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.tabs.frame import number


@pytest.mark.parametrize(
    ("text", "value"), [("", None), (" ", None), ("12", 12), (" 1,024 ", 1024), ("0", 0)]
)
def test_optional_numbers(text: str, value: int | None) -> None:
    assert number(text, "Seed") == value


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "9" * 5000, "１e3"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"Seed .*; allowed: a whole number, or nothing"):
        number(text, "Seed")
