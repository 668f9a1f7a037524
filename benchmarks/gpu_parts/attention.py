"""One layer's relative attention: as it is, compiled, FlexAttention, Triton, without its bias."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.run import Part
from benchmarks.tools.attention_ways import FULL, TINY, Inputs, timed, ways

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_BIAS = "without bias, unmasked"
LIMIT = 0.03  # difference in bfloat16 that rounding explains
SECONDS = {"as it is, compiled": 15.0, "flex": 25.0}


def measure(part: Part) -> None:
    """One layer's attention, forward and backward: as it is, compiled, Flex, Triton, no bias."""
    options = part.options
    b, h, t, p, e = sizes = TINY if options.tiny else FULL
    part.note(sizes={"B": b, "H": h, "T": t, "P": p, "E": e, "dtype": "bfloat16"})
    inputs = Inputs.random(sizes, options.device)
    backend = "inductor" if options.has_cuda_build else "eager"
    made = ways(inputs, backend=backend)
    for name, prepare in made.items():
        if name == "triton":
            continue
        if why := missing(name, options.device, options.has_cuda_build):
            part.skip(name, why)
            continue
        found = part.attempt(name, case(prepare, inputs, name), seconds=SECONDS.get(name, 3.0))
        judge(part, name, found)
    if importlib.util.find_spec("triton") is None:
        part.skip("triton", "it is not installed")
    elif not options.has_cuda_build:
        part.skip("triton", "it runs on a CUDA device")
    else:
        found = part.attempt("triton", lambda: apart("triton", part.left()), seconds=25)
        judge(part, "triton", found)


def judge(part: Part, name: str, found: dict[str, float] | None) -> None:
    """Name a way whose results or gradients are not those of the model."""
    for key, value in (found or {}).items():
        if "difference" in key and not value < LIMIT:
            part.disagrees(name)


def case(prepare: Callable[[], Any], inputs: Inputs, name: str) -> Callable[[], dict[str, float]]:
    return lambda: timed(prepare(), inputs, same=name != WITHOUT_BIAS)


def missing(name: str, device: str, has_cuda_build: bool) -> str:
    """Why a way cannot be measured here, or ""."""
    if name == "flex" and not has_cuda_build:
        return "FlexAttention has no backward pass without a GPU"
    if "compiled" in name and device == "cuda" and not has_cuda_build:
        return "this build of torch compiles for no CUDA device"
    return ""


def apart(name: str, seconds: float) -> dict[str, Any]:
    """A way in a process of its own: a kernel that fails takes its process's context along."""
    command = [sys.executable, "-m", "benchmarks.tools.attention_ways", name]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, min(60.0, seconds))
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found
