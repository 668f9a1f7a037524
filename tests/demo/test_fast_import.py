"""Gradio is imported without its stubs and its extras, and is the same otherwise."""

import subprocess
import sys

import pytest

pytest.importorskip("gradio")

PROGRAM = """
import gc, sys
from apps.demo.serving.fast_import import quickly

opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
with quickly(mcp=%s):
    import gradio
assert gc.isenabled()
assert len(sys.meta_path) == len(set(map(id, sys.meta_path)))
assert not [finder for finder in sys.meta_path if finder.__module__.startswith("apps.")]
assert gradio.components.Textbox.change  # events are there
loaded = "mcp" in sys.modules
import mcp  # it can be had later all the same
assert mcp.ClientSession
stubs, files = (sum(part in name for name in opened) for part in (".pyi", "gradio"))
print(stubs, files, loaded)
"""


@pytest.mark.parametrize("mcp", [True, False])
def test_no_stub_is_read_or_written(mcp: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM % mcp], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stubs, files, loaded = ran.stdout.split()
    assert stubs == "0" and int(files) > 100 and loaded == str(mcp)
