"""The command: options that are refused before anything is served."""

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.serving.launch import run
from tests.support.demo_server import ROOT


def test_tools_that_nobody_could_call_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--mcp with --auth; allowed: one of them"):
        run(str(tmp_path), mcp=True, auth=[("ada", "one")])


def test_the_example_of_the_command_line(tmp_path: Path) -> None:
    """What is wrong is told before anything is served."""
    import subprocess
    import sys

    for options, message in (
        (["--auth", "ada"], "allowed: NAME:PASSWORD"),
        (["--port", "70000"], "65535"),
        (["--store", __file__], "is a file"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "streamlm", "demo", *options],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode != 0 and message in ended.stderr
