"""How threads wait is set before torch is there, unless the environment says it."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from streamlm.cli import start
import streamlm.cli.app
streamlm.cli.app.main = lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
start.main()
"""


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ({}, "1000 False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None False"),
    ],
)
def test_threads_sleep_soon(given: dict[str, str], printed: str) -> None:
    kept = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", CODE], env=kept | given, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == printed
