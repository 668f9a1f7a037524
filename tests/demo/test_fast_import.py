"""The fast import skips Gradio's stubs and MCP, and changes nothing else."""

import subprocess
import sys

import pytest

pytest.importorskip("gradio")

PROGRAM = """
import gc, sys
from apps.demo.serving.fast_import import fast_gradio_import

opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
with fast_gradio_import(mcp=%s):
    import gradio
assert gc.isenabled()
assert len(sys.meta_path) == len(set(map(id, sys.meta_path)))
assert not [finder for finder in sys.meta_path if finder.__module__.startswith("apps.")]
assert gradio.components.Textbox.change  # events exist
loaded = "mcp" in sys.modules
import mcp  # MCP is importable afterwards
assert mcp.ClientSession
stubs, files = (sum(part in name for name in opened) for part in (".pyi", "gradio"))
print(stubs, files, loaded)
"""


@pytest.mark.parametrize("mcp", [True, False])
def test_stubs_are_neither_read_nor_written(mcp: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM % mcp], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stubs, files, loaded = ran.stdout.split()
    assert stubs == "0" and int(files) > 100 and loaded == str(mcp)
