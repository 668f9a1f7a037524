"""Optional integers as visitors type them, and what fails."""

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo.tabs.frame import collect_errors, parse_optional_integer
from streamlm.engine import Cancelled


@pytest.mark.parametrize(
    ("text", "value"), [("", None), (" ", None), ("12", 12), (" 1,024 ", 1024), ("0", 0)]
)
def test_optional_integers(text: str, value: int | None) -> None:
    assert parse_optional_integer(text, "Seed") == value


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "9" * 5000, "１e3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Seed .*; allowed: a whole number, or nothing"):
        parse_optional_integer(text, "Seed")


def test_whatever_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A page that waits for what has failed would wait forever."""
    for error, said, logged in (
        (ValueError("<b>no</b>"), "&lt;b&gt;no&lt;/b&gt;", False),
        (gr.Error("Log in first."), "Log in first.", False),
        (KeyError("/secret/path"), "failed for a reason that the server", True),
    ):
        caplog.clear()
        with collect_errors() as errors:
            raise error
        assert len(errors) == 1 and said in errors[0] and "secret" not in errors[0]
        assert ("secret" in caplog.text) == logged
    with collect_errors() as errors:
        raise Cancelled
    assert errors == []
    with pytest.raises(KeyboardInterrupt), collect_errors():
        raise KeyboardInterrupt
