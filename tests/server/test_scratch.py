"""Scratch folders: gone with their process, whether it ends by itself or is killed."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apps.scratch import scratch_folder

PREFIX = "streamlm-test-"
HOLD = f"""
from apps.scratch import scratch_folder
with scratch_folder({PREFIX!r}) as folder:
    print(folder, flush=True)
    input()
"""


@contextmanager
def held() -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder, whose path it prints."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of one which lives is not, nor what is of another name."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "streamlm-other").mkdir()
    with held() as killed, held() as alive:
        assert killed.stdout is not None and alive.stdout is not None
        left, kept = (Path(each.stdout.readline().strip()) for each in (killed, alive))
        (left / "body").write_text("a book")
        killed.kill()
        killed.wait(60)
        assert left.is_dir()
        with scratch_folder(PREFIX) as folder:
            assert not left.exists() and kept.is_dir() and Path(folder).is_dir()
        assert sorted(tmp_path.iterdir()) == sorted([kept, tmp_path / "streamlm-other"])
        alive.communicate("\n", timeout=60)
        assert not kept.exists()
