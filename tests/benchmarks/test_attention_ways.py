"""Other ways to compute relative attention agree with the model's own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.tools.attention_ways import TINY, Inputs, as_it_is, flex_way

ROOT = Path(__file__).resolve().parents[2]
NEWEST = (2, 3)  # version of numpy that the interpreter of Triton 3.6 works with
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without")
def test_flex_attention_agrees() -> None:
    """Forward, and not compiled: on a CPU it has nothing else."""
    given = Inputs.random(TINY, "cpu")
    floats = {name: getattr(given, name).detach().float() for name in ("q", "k", "v", "r")}
    inputs = replace(given, **floats, filled=torch.tensor([64, 20]))
    found = flex_way(inputs, lambda function: function)()
    q, k, v = inputs.q, inputs.k, inputs.v
    wanted = as_it_is(q, k, v, inputs.scores, inputs.filled, inputs.past_len)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


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


@needs_triton
@pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) > NEWEST,
    reason="the interpreter needs numpy 2.3",
)
def test_the_triton_kernel_agrees_when_interpreted() -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0 and ended.stdout == "agrees\n", ended.stderr


@needs_triton
@pytest.mark.cuda
def test_the_triton_kernel_agrees_on_a_card() -> None:
    command = [sys.executable, "-m", "benchmarks.tools.attention_ways", "triton", "--tiny"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert max(value for name, value in found.items() if "difference" in name) < 0.02
