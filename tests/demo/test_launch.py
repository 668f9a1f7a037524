"""The command refuses invalid options before it serves anything."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.serving.launch import run
from tests.support.demo_server import ROOT


def test_mcp_with_login_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--mcp with --auth; allowed: only one"):
        run(str(tmp_path), mcp=True, auth=[("ada", "one")])


def test_invalid_options_are_refused() -> None:
    for options, message in (
        (["--auth", "ada"], "allowed: NAME:PASSWORD"),
        (["--port", "70000"], "65535"),
        (["--store", __file__], "is a file"),
    ):
        finished = subprocess.run(
            [sys.executable, "-m", "streamlm", "demo", *options],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert finished.returncode != 0 and message in finished.stderr
