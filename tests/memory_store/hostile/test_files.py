"""Hostile filesystem objects: links, devices and pipes instead of files; content that is code."""

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memory_store import Corrupt, DirectoryStore, Ref, Snapshot, StoreError
from tests.memory_store.hostile.lies import little_memory, newest
from tests.support.stores import ROOT, assert_equal, assert_helpful, files


def special(path: Path, kind: str) -> None:
    if kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero has no end
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        path.symlink_to("/no/where")


@pytest.mark.parametrize(
    "kind",
    ["device", "pipe", "link to a device", "link to itself", "link to nothing", "link to what was"],
)
def test_special_files_are_not_read(either: DirectoryStore, kind: str) -> None:
    """Files are replaced in turn, some of many: reads neither block nor continue forever."""
    store = either
    if kind == "device" and os.getuid() != 0:
        pytest.skip("making a device takes root")
    began, tried = time.monotonic(), 0
    every = [path for path in sorted(store.path.rglob("*")) if not path.is_dir()]
    for path in every[:: 5 if len(every) > 50 else 1]:
        aside = store.path.parent / "aside"
        path.rename(aside)
        path.symlink_to(aside) if kind == "link to what was" else special(path, kind)
        refused = rf"{path.name}: ({'a link' if 'link' in kind else 'not a regular file'})\."
        with little_memory(), pytest.raises(Corrupt, match=refused) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        path.unlink()
        aside.rename(path)
        tried += 1
    store.verify()
    assert tried == (13 if store.path.parent.name == "old" else 7)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "link out"])
@pytest.mark.parametrize("name", [".lock", ".publish", "000000000003.json"])
def test_planted_special_files(
    store: DirectoryStore, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "device" and os.getuid() != 0:
        pytest.skip("making a device takes root")

    def no_links(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    outside = store.path.parent / "outside"
    outside.write_text("mine")
    path = store.path / "refs" / "main" / name
    path.symlink_to(outside) if kind == "link out" else special(path, kind)
    before, ref = files(store.path / "commits"), newest_before(store, name)
    monkeypatch.setattr(os, "link", no_links)
    try:
        with store.writer():
            store.commit(Snapshot(ref.position), parent=ref)
    except StoreError as error:
        assert_helpful(error)
        assert files(store.path / "commits") == before
    else:
        assert name == ".publish" and kind in ("device", "pipe")  # they can be locked as well
    assert outside.read_text() == "mine"
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["outside", "s.zarr"]


def newest_before(store: DirectoryStore, name: str) -> Ref:
    return store._refs.read("main", 2) if name.endswith("json") else newest(store)


@pytest.mark.parametrize(
    ("fixture", "depth"),
    [("store", "branch"), ("old", "branch"), ("old", "commit"), ("old", "array")],
)
def test_linked_folders(fixture: str, depth: str, request: pytest.FixtureRequest) -> None:
    """Reads through a linked folder return committed data only, and nothing is written."""
    store: DirectoryStore = request.getfixturevalue(fixture)
    ref = newest(store)
    snapshot, name = store.load(ref), ref.commit.name
    place = {"branch": "refs/main", "commit": f"commits/{name}", "array": f"commits/{name}/tokens"}
    path, outside = store.path / place[depth], store.path.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = files(outside)
    found = DirectoryStore.open(store.path)
    assert_equal(found.load(ref), snapshot)
    lost = "c.*" if depth != "branch" else f"{ref.seq:012d}.json"
    next(outside.rglob(lost)).write_bytes(b"other")
    for action in (
        lambda: found.verify(),
        lambda: found.load(newest(found)),
        lambda: found.commit(snapshot, parent=ref),
    ):
        with pytest.raises((StoreError, ValueError)):
            action()
    assert files(outside).keys() == before.keys()
    with suppress(Corrupt):  # deleting is allowed, but not the target of the link
        found.delete()
    assert files(outside).keys() == before.keys()


def test_linked_commits(store: DirectoryStore) -> None:
    """A link instead of a commit's file is not followed, and its target stays unchanged."""
    ref = newest(store)
    snapshot, outside = store.load(ref), store.path.parent / "outside.zip"
    path = store.path / "commits" / ref.commit.name
    path.rename(outside)
    path.symlink_to(outside)
    honest = outside.read_bytes()
    found = DirectoryStore.open(store.path)
    for action in (
        lambda: found.verify(),
        lambda: found.load(ref),
        lambda: found.tokens(ref, 0, ref.position),
        lambda: found.commit(snapshot, parent=ref),
    ):
        with pytest.raises((StoreError, ValueError)) as caught:
            action()
        if isinstance(caught.value, StoreError):
            assert_helpful(caught.value)
    found.delete()
    assert outside.read_bytes() == honest and not store.path.exists()


EXECUTED = """
import sys, warnings
import numpy, json
from memory_store import DirectoryStore, StoreError
import memory_store.backends.directory, memory_store.upkeep.verify
from tests.support.stores import assert_helpful
store = DirectoryStore.open(sys.argv[1])
head = store.head("main")
store.load(head), store.verify()
seen = []
WATCHED = ("exec", "compile", "import", "pickle.", "marshal.", "os.system", "os.exec", "subprocess",
           "ctypes.", "socket.", "os.posix_spawn", "os.fork", "shutil.", "os.remove", "os.rename")
sys.addaudithook(lambda event, _: event.startswith(WATCHED) and seen.append(event))
import os
for folder, _, names in list(os.walk(sys.argv[1])):
    for name in names:
        path = os.path.join(folder, name)
        honest = open(path, "rb").read()
        # The whole file, and the beginning of each member of a commit's file.
        parts = [i + 59 for i in range(1, len(honest)) if honest.startswith(b"PK\\3\\4", i)]
        for junk in (b"cos\\nsystem\\n(S'ls'\\ntR.", b"\\x80\\x04N.", b"import os", b"\\x93NUMPY"):
            whole = junk.ljust(len(honest), b"\\n")[: len(honest)]
            within = [honest[:i] + junk + honest[i + len(junk) :] for i in parts]
            for lie in (whole, *within):
                open(path, "wb").write(lie)
                try:
                    again = DirectoryStore.open(sys.argv[1])
                    again.verify(), again.load(head)
                except StoreError as error:
                    assert_helpful(error)
                else:
                    raise AssertionError(path)
        open(path, "wb").write(honest)
assert not seen, sorted(set(seen))
DirectoryStore.open(sys.argv[1]).verify()
exec("1")
assert seen, "the hook does not work"
"""


def test_nothing_is_executed(either: DirectoryStore) -> None:
    subprocess.run([sys.executable, "-c", EXECUTED, str(either.path)], cwd=ROOT, check=True)
