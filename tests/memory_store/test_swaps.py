"""Misplaced files: of another commit, branch or session, or of a diverged copy.

Every file has a valid checksum. The chain of ids detects it, or the place that it names itself.
"""

import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from memory_store import DirectoryStore, Ref, Snapshot, StoreError
from tests.support.stores import (
    ROOT,
    Stream,
    assert_equal,
    assert_helpful,
    files,
    members,
    new_store,
    repacked,
    where,
)


def write(store: DirectoryStore, seed: int, branches: tuple[str, ...]) -> None:
    stream = Stream(seed, memory=6, compressed=4)
    for branch in branches:
        if head := store.head(branch):
            stream.resume(store.load(head))
        for _ in range(2):
            stream.read(4, memory=3, compressed=1)
            store.commit(stream.snapshot(), branch=branch, parent=store.head(branch))
        if "side" in branches and store.head("side") is None:
            store.publish(store.refs("main")[0], branch="side")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = new_store(tmp_path / "s.zarr")
    write(store, 0, ("main",))
    shutil.copytree(store.path, tmp_path / "copy.zarr")
    write(store, 1, ("main", "side"))
    write(DirectoryStore.open(tmp_path / "copy.zarr"), 2, ("main", "side"))
    write(new_store(tmp_path / "other.zarr"), 3, ("main", "side"))
    return store


@pytest.fixture
def old(tmp_path: Path) -> DirectoryStore:
    """A session of schema 1, whose commits are folders, a diverged copy, and another session."""
    data = ROOT / "tests" / "data" / "schema-1.zarr"
    shutil.copytree(data, tmp_path / "s.zarr")
    shutil.copytree(data, tmp_path / "copy.zarr")
    write(DirectoryStore.open(tmp_path / "copy.zarr"), 2, ("main", "side"))
    write(new_store(tmp_path / "other.zarr"), 3, ("main", "side"))
    return DirectoryStore.open(tmp_path / "s.zarr")


def kind(name: str) -> str:
    """The kind of a file: its name without the commit, the array, the branch and the number."""
    name = re.sub(r"commits/[^/]*\.zip", "commits.zip", name)
    name = re.sub(r"commits/[^/]*", "commits", name)
    name = re.sub(r"commits/[^/]*/(c\.|zarr)", r"commits/array/\1", name)
    return re.sub(r"refs/[^/]*/\d+", "refs", re.sub(r"/c\.[0-9.]*$", "/c", name))


def same(one: bytes, other: bytes) -> bool:
    """Whether two refs differ in their time only: such a swap cannot be detected."""
    if not (one.startswith(b"{") and b'"branch"' in one):
        return one == other
    first, second = json.loads(one), json.loads(other)
    return all(first[key] == second[key] for key in ("branch", "seq", "commit", "id"))


def swaps(store: DirectoryStore, chance: random.Random, most: int) -> Iterator[tuple[str, bytes]]:
    """For every file, the contents of up to `most` files of its kind from each session."""
    everywhere = {
        path.name: files(path) for path in sorted(store.path.parent.iterdir()) if path.is_dir()
    }
    for name, honest in everywhere[store.path.name].items():
        for theirs in everywhere.values():
            found = {
                content
                for other, content in theirs.items()
                if kind(other) == kind(name) and not same(content, honest)
            }
            yield from (
                (name, content) for content in chance.sample(sorted(found), min(most, len(found)))
            )


def check(store: DirectoryStore, known: Mapping[Ref, Snapshot], match: str = r"s\.zarr") -> None:
    """`verify` detects the swap, and every loaded snapshot equals the committed one."""
    with pytest.raises(StoreError, match=match) as caught:
        DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)
    for ref, snapshot in known.items():
        try:
            assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
        except StoreError as error:
            assert_helpful(error)


def everything(store: DirectoryStore) -> dict[Ref, Snapshot]:
    return {ref: store.load(ref) for branch in store.branches() for ref in store.refs(branch)}


@pytest.mark.parametrize(
    ("fixture", "most", "kinds", "least"),
    [
        ("store", 2, {"session.json", "refs.json", "commits.zip"}, 60),
        (
            "old",
            1,
            {"session.json", "refs.json", "commits/zarr.json"}
            | {"commits/array/zarr.json", "commits/array/c"},
            120,
        ),
    ],
    ids=["files", "folders"],
)
def test_swapped_files(
    fixture: str, most: int, kinds: set[str], least: int, request: pytest.FixtureRequest
) -> None:
    store: DirectoryStore = request.getfixturevalue(fixture)
    known = everything(store)
    tried: dict[str, int] = {}
    for name, content in swaps(store, random.Random(0), most):
        path = store.path / name
        honest = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        check(store, known)
        path.unlink()
        path.write_bytes(honest)
        tried[kind(name)] = tried.get(kind(name), 0) + 1
    store.verify()
    assert tried.keys() == kinds
    assert sum(tried.values()) > least


def test_swapped_members(store: DirectoryStore) -> None:
    """Members of two commits' files, swapped in place if their sizes are equal, and repacked.

    A swap in place keeps the headers and the directory; repacking rebuilds them to match.
    """
    everywhere = {path: files(path / "commits") for path in sorted(store.path.parent.iterdir())}
    known, chance = everything(store), random.Random(0)
    tried = {"in place": 0, "packed": 0}
    for name, data in everywhere[store.path].items():
        path, parts = store.path / "commits" / name, members(data)
        for part, honest in parts.items():
            for theirs in chance.sample(sorted(everywhere), 2):
                found = {
                    content
                    for other in everywhere[theirs].values()
                    for its, content in members(other).items()
                    if its.rpartition("/")[2] == part.rpartition("/")[2] and content != honest
                }
                for content in chance.sample(sorted(found), min(1, len(found))):
                    at = where(data, part)
                    if len(content) == len(honest):
                        lying = data[:at] + content + data[at + len(content) :]
                        tried["in place"] += 1
                    else:
                        lying = repacked({**parts, part: content})
                        tried["packed"] += 1
                    path.write_bytes(lying)
                    check(store, known, name)
                    if len(content) == len(honest):
                        path.write_bytes(repacked({**parts, part: content}))
                        check(store, known, name)
        path.write_bytes(data)
    store.verify()
    assert tried["in place"] > 25 and tried["packed"] > 50


@pytest.mark.parametrize(
    ("fixture", "what"),
    [
        ("store", "commit"),
        ("store", "branch"),
        ("old", "commit"),
        ("old", "array"),
        ("old", "branch"),
    ],
)
def test_swapped_folders(fixture: str, what: str, request: pytest.FixtureRequest) -> None:
    """A whole commit, array or branch replaces another."""
    store: DirectoryStore = request.getfixturevalue(fixture)
    places = {
        "commit": sorted((store.path / "commits").iterdir()),
        "array": sorted({path.parent for path in store.path.rglob("c.*")}),
        "branch": sorted((store.path / "refs").iterdir()),
    }[what]
    known = everything(store)
    aside = store.path.parent / "aside"
    tried = 0
    for one, other in zip(places, [*places[1:], places[0]], strict=True):
        for source, target in ((one, aside), (other, one), (aside, other)):
            source.rename(target)
        if content(one) != content(other):
            check(store, known)
            tried += 1
        for source, target in ((one, aside), (other, one), (aside, other)):
            source.rename(target)
    store.verify()
    assert tried == len(places)


def content(path: Path) -> object:
    return files(path) if path.is_dir() else path.read_bytes()
