"""Optional integers as visitors type them."""

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.tabs.frame import parse_optional_integer


@pytest.mark.parametrize(
    ("text", "value"), [("", None), (" ", None), ("12", 12), (" 1,024 ", 1024), ("0", 0)]
)
def test_optional_integers(text: str, value: int | None) -> None:
    assert parse_optional_integer(text, "Seed") == value


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "9" * 5000, "１e3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Seed .*; allowed: a whole number, or nothing"):
        parse_optional_integer(text, "Seed")
