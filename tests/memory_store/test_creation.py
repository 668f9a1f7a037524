"""Creation: two processes at once, a kill at any moment, and folders that hold no session."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import DirectoryStore, InMemoryStore, NotFound, Snapshot, StoreError, places
from memory_store.backends.directory import DirectoryBackend
from memory_store.backends.memory import MemoryBackend
from memory_store.format.header import create_header
from tests.support.stores import ROOT, assert_helpful, new_store


class Killed(BaseException):
    """The process ends here: nothing that follows has an effect."""


def test_a_header_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival creates the session after the place was found vacant."""
    path, rivals = tmp_path / "s.zarr", []
    check = DirectoryBackend._check_vacant

    def late(self: DirectoryBackend) -> None:
        check(self)
        monkeypatch.setattr(DirectoryBackend, "_check_vacant", check)
        rivals.append(new_store(path))
        rivals[0].commit(Snapshot(0), parent=None)

    monkeypatch.setattr(DirectoryBackend, "_check_vacant", late)
    with pytest.raises(StoreError, match="holds a session already") as caught:
        new_store(path)
    assert_helpful(caught.value)
    store = DirectoryStore.open(path)
    assert store.session == rivals[0].session
    assert store.verify().commits == 1
    assert sorted(os.listdir(path)) == ["commits", "refs", "session.json"]


RACE = """
import sys
from memory_store import DirectoryStore, Snapshot, StoreError
for line in sys.stdin:
    try:
        store = DirectoryStore.create(line.strip(), durability="normal")
        store.commit(Snapshot(0), parent=None)
    except StoreError as error:
        print("refused", flush=True)
    else:
        print(store.session, flush=True)
"""


def test_one_of_two_creations_wins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE]
    racers = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for number in range(40):
        path = tmp_path / f"{number}.zarr"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{path}\n")
            racer.stdin.flush()
        said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
        assert said.count("refused") == 1
        store = DirectoryStore.open(path)
        assert store.session in said
        assert store.verify().commits == 1
    for racer in racers:
        racer.communicate()


def test_creation_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = new_store(tmp_path / "s.zarr")
    store.commit(Snapshot(0), parent=None)
    with pytest.raises(StoreError, match="holds a session already"):
        new_store(tmp_path / "s.zarr")
    assert places.export(store.path, tmp_path / "s.zip") > 0
    with pytest.raises(StoreError, match="exists already"):
        places.export(store.path, tmp_path / "s.zip")
    places.import_(tmp_path / "s.zip", tmp_path / "t.zarr")
    assert DirectoryStore.open(tmp_path / "t.zarr").verify().commits == 1


def killed_at(monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], object]) -> bool:
    """Run `action` and kill it at its `at`-th change of a folder; False if it ends before."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("mkdir", "open", "writev", "link", "rename", "unlink", "rmdir", "replace"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return True
    return False


def test_a_kill_at_any_step_of_a_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free afterwards, or it holds a session."""
    vacant = 0
    for at in range(100):
        path = tmp_path / f"{at}.zarr"
        killed = killed_at(monkeypatch, at, lambda path=path: new_store(path))  # type: ignore[misc]
        if not killed:
            break
        if not places.occupied(path):
            vacant += 1
            assert f"{at}" not in places.session_names(tmp_path)
            if path.exists():
                shutil.copytree(path, tmp_path / "copy.zarr")
                assert places.clear(tmp_path / "copy.zarr")
                assert not (tmp_path / "copy.zarr").exists()
            new_store(path)
        DirectoryStore.open(path).commit(Snapshot(0), parent=None)
    assert vacant >= 5 and not killed


def test_a_kill_at_any_step_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free afterwards, or it holds the whole session."""
    store = new_store(tmp_path / "s.zarr")
    parent = store.commit(Snapshot(0), parent=None)
    store.commit(Snapshot(0), parent=parent)
    places.export(store.path, tmp_path / "s.zip")
    for at in range(0, 400, 3):
        path = tmp_path / f"{at}.zarr"
        killed = killed_at(
            monkeypatch,
            at,
            lambda path=path: places.import_(tmp_path / "s.zip", path),  # type: ignore[misc]
        )
        if places.occupied(path):
            assert DirectoryStore.open(path).verify().commits == 2
        if not killed:
            break
    assert not killed and places.occupied(path)


@pytest.mark.parametrize(
    "names", [[], ["refs/"], ["commits/", "refs/"], [".tmp-1234"], ["refs/", ".tmp-1", ".publish"]]
)
def test_vacant_folders_are_free(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "s.zarr"
    path.mkdir()
    for name in names:
        (path / name).mkdir() if name.endswith("/") else (path / name).write_bytes(b"{")
    assert not places.occupied(path) and places.session_names(tmp_path) == []
    with pytest.raises(NotFound, match="no session here"):
        DirectoryStore.open(path)
    source = new_store(tmp_path / "source.zarr")
    places.copy(source.path, path)
    assert DirectoryStore.open(path).session == source.session
    shutil.rmtree(path)
    path.mkdir()
    places.rename(source.path, path)
    assert DirectoryStore.open(path).session == source.session


@pytest.mark.parametrize("name", ["notes.txt", "commits/x", "refs/main/", "session.json"])
def test_other_folders_are_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.zarr"
    file = path / name
    (file if name.endswith("/") else file.parent).mkdir(parents=True)
    if not name.endswith("/"):
        file.write_bytes(b"")
    assert places.occupied(path) and not places.clear(path)
    for action in (
        lambda: new_store(path),
        lambda: places.copy(new_store(tmp_path / "t.zarr").path, path),
    ):
        with pytest.raises(StoreError, match="already"):
            action()
    assert file.exists()


def test_a_session_created_anew_is_not_written_to(tmp_path: Path) -> None:
    """A writer of a deleted session commits to a new one of that name: refused."""
    old = new_store(tmp_path / "s.zarr")
    shutil.rmtree(old.path)
    new = new_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="another session") as caught:
        old.commit(Snapshot(0), parent=None)
    assert_helpful(caught.value)
    assert new.branches() == [] and not list((new.path / "commits").iterdir())


def test_a_dict_is_taken_once() -> None:
    files: dict[str, bytes] = {}
    backend = MemoryBackend(files)
    assert backend.is_vacant()
    InMemoryStore.create(files)
    assert not backend.is_vacant()
    with pytest.raises(StoreError, match="in use already"):
        create_header(MemoryBackend(files), attributes=None, fingerprints=None)
