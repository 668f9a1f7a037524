"""Replicas on a local Ray: sessions stay where they are, and no answered commit is lost."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto", reason="needs moto[s3]")
pytest.importorskip("obstore", reason="needs obstore: pip install 'streamlm[objects]'")

from tests.support.command_line import ROOT
from tests.support.s3 import S3Server


@pytest.fixture
def answered(model: Path, tmp_path: Path) -> dict[str, Any]:
    server = S3Server()
    server.make_bucket("shelf")
    environment = {
        **os.environ,
        **server.environment(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path),  # Ray keeps a token there
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.ray_replicas", str(model), "s3://shelf/x"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'ray[serve]'")
def test_replicas_lose_no_commit_that_was_answered(answered: dict[str, Any]) -> None:
    """Every answer goes on from the one before, whichever replica gives it."""
    assert answered["replicas"] == 2
    step = answered["named"][0][1]
    for index in range(4):
        requests = answered["named"][index::4] + (answered["unnamed"] if index == 0 else [])
        assert {status for status, _ in requests} <= {200, 409}
        positions = [position for status, position in requests if status == 200]
        assert positions == [step * n for n in range(1, len(positions) + 1)]
        # What the killed replica had been asked may be saved without an answer.
        killed = [position for status, position in answered["killed"][index::4] if status == 200]
        assert killed and killed == sorted(set(killed)) and killed[0] > positions[-1]
        assert all(position % step == 0 for position in killed)
    # Ray keeps a session on its replica; the other one would have got a conflict.
    assert sum(status == 200 for status, _ in answered["named"]) > 6
    assert sum(status == 200 for status, _ in answered["unnamed"]) >= 4
