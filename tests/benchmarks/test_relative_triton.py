"""The Triton kernel of relative attention beside the model's own, run by Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
NEWEST = (2, 3)  # version of numpy that the interpreter of Triton 3.6 works with
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

# Triton reads the variable once, when it is imported, so this needs a process of its own.
SCRIPT = """
import torch
from benchmarks.tools.attention_ways import as_it_is
from benchmarks.tools.relative_triton import relative_attention

generator = torch.Generator().manual_seed(0)
for t, past, filled in ((32, 48, (48, 20)), (21, 40, (0, 33)), (16, 0, (0, 0))):
    b, h, e, n = 2, 2, 16, past + t
    given = [torch.randn(b, h, *size, generator=generator)
             for size in ((t, e), (n, e), (n, e), (t, n + 1))]
    out = torch.randn(b, h, t, e, generator=generator)
    found = []
    for way in (as_it_is, lambda *args: relative_attention(*args, block=(16, 16))):
        leaves = [each.clone().requires_grad_() for each in given]
        result = way(*leaves, torch.tensor(filled), past)
        found.append([result, *torch.autograd.grad(result, leaves, out)])
    for name, mine, wanted in zip(("out", "q", "k", "v", "scores"), found[1], found[0]):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4, msg=lambda m: name + m)
print("agrees")
"""


@pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) > NEWEST,
    reason="the interpreter needs numpy 2.3",
)
def test_agrees_with_the_model() -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0 and ended.stdout == "agrees\n", ended.stderr
