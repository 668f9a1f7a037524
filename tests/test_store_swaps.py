"""Sound files in the wrong place: of another commit, branch or session, or of a copy gone on apart.

Each file passes its own checksum. What tells it is the chain of ids, or where it says it belongs.
"""

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_store import DirectoryStore, Ref, Snapshot, StoreError
from tests.stores import Stream, assert_equal, assert_helpful, files, new_store


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


def kind(name: str) -> str:
    """What a file is, wherever it lies: array and branch, commit and number left out."""
    name = re.sub(r"commits/[^/]*", "commits", name)
    name = re.sub(r"commits/[^/]*/(c\.|zarr)", r"commits/array/\1", name)
    return re.sub(r"refs/[^/]*/\d+", "refs", re.sub(r"/c\.[0-9.]*$", "/c", name))


def same(one: bytes, other: bytes) -> bool:
    """Whether two refs say the same at another time: nobody can tell which was here."""
    if not (one.startswith(b"{") and b'"branch"' in one):
        return one == other
    first, second = json.loads(one), json.loads(other)
    return all(first[key] == second[key] for key in ("branch", "seq", "commit", "id"))


def swaps(store: DirectoryStore, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """For every file, contents of files of its kind from everywhere: from each place, some."""
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
                (name, content) for content in chance.sample(sorted(found), min(1, len(found)))
            )


def test_every_kind_of_file_swapped(store: DirectoryStore) -> None:
    known: dict[Ref, Snapshot] = {
        ref: store.load(ref) for branch in store.branches() for ref in store.refs(branch)
    }
    tried: dict[str, int] = {}
    for name, content in swaps(store, random.Random(0)):
        path = store.path / name
        honest = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"\.zarr") as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        for ref, snapshot in known.items():
            try:
                assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
            except StoreError as error:
                assert_helpful(error)
        path.unlink()
        path.write_bytes(honest)
        tried[kind(name)] = tried.get(kind(name), 0) + 1
    store.verify()
    assert tried.keys() == {
        *("session.json", "refs.json", "commits/zarr.json"),
        *("commits/array/zarr.json", "commits/array/c"),
    }
    assert sum(tried.values()) > 200


@pytest.mark.parametrize("what", ["commit", "array", "branch"])
def test_every_kind_of_folder_swapped(store: DirectoryStore, what: str) -> None:
    """A whole commit, array or branch in the place of another."""
    places = {
        "commit": sorted((store.path / "commits").iterdir()),
        "array": sorted(path.parent for path in store.path.rglob("c.*")),
        "branch": sorted((store.path / "refs").iterdir()),
    }[what]
    known = {ref: store.load(ref) for ref in store.refs("main")}
    aside = store.path.parent / "aside"
    for one, other in zip(places, [*places[1:], places[0]], strict=True):
        for source, target in ((one, aside), (other, one), (aside, other)):
            source.rename(target)
        if files(one) != files(other):
            with pytest.raises(StoreError) as caught:
                DirectoryStore.open(store.path).verify()
            assert_helpful(caught.value)
        for ref, snapshot in known.items():
            try:
                assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
            except StoreError as error:
                assert_helpful(error)
        for source, target in ((one, aside), (other, one), (aside, other)):
            source.rename(target)
    store.verify()
