"""The tests that need a CUDA device."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu_parts.run import Part

ROOT = Path(__file__).resolve().parents[2]


def measure(part: Part) -> None:
    """`pytest -m cuda`, one test file after another; a file whose imports fail is skipped."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.cuda" not in path.read_text(encoding="utf-8"):
            continue
        name = str(path.relative_to(ROOT))
        said = part.attempt(name, partial(tested, path, part.left()), seconds=15)
        if isinstance(said, str) and said.startswith("FAILED"):
            part.disagrees(name)


def tested(path: Path, seconds: float) -> str:
    """What pytest says of a file."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-W", "default"]
    command += ["-p", "benchmarks.tools.without_store", "-p", "no:cacheprovider", str(path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # wheels, too
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=env,
        timeout=max(1.0, min(600.0, seconds)),
    )  # fmt: skip
    text = result.stdout + result.stderr
    missing = re.search(r"(?:ModuleNotFoundError: )?No module named '?([\w.]+)'?", text)
    lines = text.strip().splitlines()
    if result.returncode and missing:
        return f"skipped: no module named {missing[1]}"
    if result.returncode in (0, 5):  # 5: no test was selected
        return lines[-1]
    return "FAILED\n" + "\n".join(lines[-60:])
