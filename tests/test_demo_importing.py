"""Gradio is imported without its stubs, and is the same otherwise."""

import subprocess
import sys

import pytest

pytest.importorskip("gradio")

PROGRAM = """
import sys
from apps.demo.importing import without_stubs

opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
with without_stubs():
    import gradio
assert len(sys.meta_path) == len(set(map(id, sys.meta_path)))
assert not [finder for finder in sys.meta_path if finder.__module__.startswith("apps.")]
assert gradio.components.Textbox.change  # events are there
print(sum(name.endswith(".pyi") for name in opened), sum("gradio" in name for name in opened))
"""


def test_no_stub_is_read_or_written() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stubs, files = map(int, ran.stdout.split())
    assert stubs == 0 and files > 100
