"""Exported sessions: Zarr reads them, and damaged or hostile archives are refused."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from memory_store import Corrupt, NotFound, StoreError
from memory_store.backends.directory import DirectoryBackend
from memory_store.media import DirectoryStore
from memory_store.store import Store
from memory_store.upkeep.export import export_session, import_session
from tests.memory_store.conformance.upkeep import grown
from tests.support.stores import new_store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = new_store(tmp_path / "s.zarr")
    grown(store, 3)
    return store


def packed(store: Store, path: Path) -> Path:
    assert export_session(store._backend, path) == path.stat().st_size
    return path


def unpacked(path: Path, to: Path) -> DirectoryStore:
    import_session(path, DirectoryBackend(to, "full"))
    return DirectoryStore.open(to)


def test_zarr_opens_exported_commits(store: DirectoryStore, tmp_path: Path) -> None:
    path = packed(store, tmp_path / "s.zip")
    head = store.head("main")
    assert head is not None
    with zipfile.ZipFile(path) as archive:
        commit = Path(archive.extract(f"commits/{head.commit.name}", tmp_path))
    with zarr.storage.ZipStore(commit, mode="r") as files:
        group = zarr.open_group(files, mode="r")
        expected = store.load(head)
        assert np.array_equal(group["segment"][:], expected.arrays["segment"])
        assert group.attrs["position"] == 30


def test_equal_sessions_are_equal_archives(store: DirectoryStore, tmp_path: Path) -> None:
    first = packed(store, tmp_path / "a.zip").read_bytes()
    again = packed(unpacked(tmp_path / "a.zip", tmp_path / "b.zarr"), tmp_path / "b.zip")
    assert again.read_bytes() == first
    with pytest.raises(StoreError, match="exists already"):
        packed(store, tmp_path / "b.zip")


def test_every_damaged_byte_is_detected_or_harmless(store: DirectoryStore, tmp_path: Path) -> None:
    data = packed(store, tmp_path / "s.zip").read_bytes()
    intact = store.verify()
    detected = 0
    for at in range(0, len(data), len(data) // 60):
        path = tmp_path / f"{at}.zip"
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        to = tmp_path / f"{at}.zarr"
        try:
            found = unpacked(path, to)
        except (Corrupt, NotFound):
            detected += 1
            assert not to.exists()
        else:  # a date or a file attribute in the archive
            assert found.verify() == intact and found.refs("main") == store.refs("main")
    assert detected > 40
    for at in range(0, len(data), len(data) // 20):
        (tmp_path / "short.zip").write_bytes(data[:at])
        with pytest.raises((Corrupt, NotFound)):
            unpacked(tmp_path / "short.zip", tmp_path / "short.zarr")


def rewritten(path: Path, change: Callable[[zipfile.ZipInfo], None]) -> None:
    with zipfile.ZipFile(path) as old:
        members = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for info, data in members:
            change(info)
            new.writestr(info, data, compress_type=info.compress_type)


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "commits/../../evil", "refs/../evil/000000000000.json", "readme"]
)
def test_added_files_are_refused(store: DirectoryStore, tmp_path: Path, name: str) -> None:
    path = packed(store, tmp_path / "s.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    (tmp_path / "in").mkdir()
    with pytest.raises(Corrupt, match="files are missing or were added"):
        unpacked(path, tmp_path / "in" / "s.zarr")
    assert not list(tmp_path.rglob("evil*")) and not list((tmp_path / "in").iterdir())


def test_compressed_and_duplicate_members(store: DirectoryStore, tmp_path: Path) -> None:
    path = packed(store, tmp_path / "s.zip")

    def deflated(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    rewritten(path, deflated)
    with pytest.raises(Corrupt, match="compressed or encrypted"):
        unpacked(path, tmp_path / "bomb.zarr")
    path.unlink()
    packed(store, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("session.json", b"{}")
    with pytest.raises(Corrupt, match="twice"):
        unpacked(path, tmp_path / "twice.zarr")
    path.unlink()
    data = packed(store, path).read_bytes()
    # The directory at the end claims that the first file has 2 GB.
    at = data.index(b"PK\x01\x02")
    path.write_bytes(data[: at + 20] + struct.pack("<II", 2**31, 2**31) + data[at + 28 :])
    with pytest.raises(Corrupt):
        unpacked(path, tmp_path / "huge.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "s.zip"]


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        unpacked(tmp_path / "none.zip", tmp_path / "s.zarr")
    (tmp_path / "text.zip").write_text("Call me Ishmael.")
    with pytest.raises(Corrupt, match="not an exported session"):
        unpacked(tmp_path / "text.zip", tmp_path / "s.zarr")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(NotFound, match="no session here"):
        unpacked(tmp_path / "empty.zip", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
