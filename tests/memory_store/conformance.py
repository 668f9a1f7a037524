"""What every memory store does, whatever keeps its files: each kind's tests subclass this."""

import json
import math
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import (
    Commit,
    Conflict,
    Mismatch,
    NotFound,
    Ref,
    Snapshot,
    StoreError,
    UnsupportedSchema,
    Window,
)
from memory_store.format.json import sealed
from memory_store.format.manifest import MAX_WINDOW, Manifest
from memory_store.format.zarr import FILL
from memory_store.store import Store
from tests.memory_store.conformance_upkeep import UpkeepConformance
from tests.support.stores import (
    FINGERPRINTS,
    Stream,
    assert_equal,
    assert_same_bits,
    members,
    repacked,
)


class Place(ABC):
    """Where one session is kept, and its files seen from outside."""

    @abstractmethod
    def create(self, **options: Any) -> Store: ...

    @abstractmethod
    def open(self) -> Store:
        """Another store of the same session, which knows nothing of the first."""

    @abstractmethod
    def files(self) -> dict[str, bytes]: ...

    @abstractmethod
    def write(self, key: str, data: bytes | None) -> None:
        """Replace a file; None removes it."""

    def new(self, **options: Any) -> Store:
        return self.create(**{"fingerprints": FINGERPRINTS, **options})

    def commits(self) -> set[str]:
        return {key.split("/")[1] for key in self.files() if key.startswith("commits/")}


def manifest(store: Store, ref: Ref | None) -> Manifest:
    assert ref is not None
    return store._commits.read(ref.commit)


class StoreConformance(UpkeepConformance):
    """Subclasses have a fixture `place`: a `Place` where there is nothing yet."""

    histories: ClassVar[int] = 8  # random histories that are tried
    steps: ClassVar[int] = 45  # of each
    walk: ClassVar[int] = 200  # commits in the long walk
    every: ClassVar[int] = 1  # of the damages to every file, how many are tried: one in so many

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "seed" in metafunc.fixturenames:
            metafunc.parametrize("seed", range(self.histories))

    # --- what is committed is loaded

    def test_any_history_loads_bit_for_bit(self, place: Place, seed: int) -> None:
        rng = np.random.default_rng(seed)
        store, stream = place.new(), Stream(seed)
        heads: dict[str, Ref | None] = {"main": None}
        committed: dict[Commit, Snapshot] = {}
        parents: dict[Commit, Commit | None] = {}
        branch = "main"
        for step in range(self.steps):
            action = rng.choice(["commit", "rewind", "fork", "switch"], p=[0.85, 0.05, 0.05, 0.05])
            parent = heads[branch]
            if action == "commit" or not committed or parent is None:
                tokens = int(rng.integers(0, 9))
                most = int(rng.choice([0, 2, 4, 40]))  # none, a few, or more than the window holds
                stream.read(tokens, memory=most, compressed=most // 4)
                if rng.random() < 0.05:  # a caller that breaks the promise that slots never change
                    stream.window["memory"] = stream.window["memory"] ^ 1
                if rng.random() < 0.05:  # and one that takes back slots
                    stream.window["compressed"] = stream.window["compressed"][:, :, :-1]
                    stream.end["compressed"] = max(0, stream.end["compressed"] - 1)
                snapshot = stream.snapshot()
                if rng.random() < 0.1:
                    kept = {"compressed": snapshot.windows["compressed"]}
                    snapshot = replace(snapshot, windows=kept)
                if rng.random() < 0.1:
                    store = place.open()
                ref = store.commit(snapshot, branch=branch, parent=parent)
                committed[ref.commit] = snapshot
                parents[ref.commit] = parent.commit if parent else None
                heads[branch] = ref
            else:
                if action == "switch":
                    branch = str(rng.choice(list(heads)))
                else:
                    branch = branch if action == "rewind" else f"fork-{step}"
                    target = list(committed)[int(rng.integers(len(committed)))]
                    heads[branch] = store.publish(target, branch=branch)
                head = heads[branch]
                assert head is not None
                stream.resume(store.load(head))

        fresh = place.open()
        for name, head in heads.items():
            assert fresh.head(name) == head
        for commit, snapshot in committed.items():
            assert_equal(fresh.load(commit), snapshot)

            line = [commit]
            while (back := parents[line[-1]]) is not None:
                line.append(back)
            log = np.concatenate([committed[each].tokens for each in reversed(line)])
            assert_same_bits(fresh.tokens(commit, 0, commit.position), log)
            start, stop = sorted(int(n) for n in rng.integers(0, commit.position + 1, 2))
            assert_same_bits(fresh.tokens(commit, start, stop), log[start:stop])
            position = int(rng.integers(line[-1].position, commit.position + 1))
            expected = next(each for each in line if each.position <= position)
            assert fresh.nearest(commit, position) == expected
        checked = fresh.verify()
        assert checked.refs == sum(len(fresh.refs(name)) for name in heads)
        assert checked.commits >= len({ref.commit for ref in heads.values() if ref})

    @pytest.mark.parametrize("dtype", FILL)
    def test_every_dtype_and_layout(self, place: Place, dtype: str) -> None:
        rng = np.random.default_rng(0)

        def noise(*shape: int) -> np.ndarray:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            raw = rng.integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8)
            return raw.view(dtype).reshape(shape)  # floats: NaNs with all kinds of payload, −0

        arrays = {
            "scalar": noise(),
            "one": noise(7),
            "none": noise(0, 3),
            "transposed": noise(4, 5).T,
            "strided": noise(9, 6)[::2, ::-1],
            "big-endian": noise(6).view(np.dtype(dtype).newbyteorder(">")),
            "read-only": noise(3),
        }
        arrays["read-only"].flags.writeable = False
        data = noise(6, 20)
        store, ref = place.new(), None
        for end in (8, 9, 15):
            windows = {
                "first": Window(data.T[end - 8 : end], 0, end, 8),
                "last": Window(data[:, end - 8 : end], 1, end, 8),
                "line": Window(data[0, end - 8 : end], 0, end, 8),
            }
            tokens = np.zeros(end - (ref.position if ref else 0), int)
            snapshot = Snapshot(end, windows, arrays, tokens)
            ref = store.commit(snapshot, parent=ref)
            assert_equal(store.load(ref), replace(snapshot, tokens=tokens.astype(np.int32)))

    def test_large_arrays_are_split(self, place: Place) -> None:
        data = np.arange(5 * 2_000_000, dtype=np.float32).reshape(5, 2_000_000)  # 40 MB
        store = place.new()
        ref = store.commit(Snapshot(0, {"w": Window(data, 0, 5, 5)}), parent=None)
        inside = members(place.files()[f"commits/{ref.commit.name}"])
        chunks = [name for name in inside if name.startswith("w/c.")]
        assert chunks == ["w/c.0.0", "w/c.1.0"]  # three rows each, the last padded
        assert_same_bits(store.load(ref).windows["w"].data, data)
        store.verify()

    def test_only_new_slots_are_written(self, place: Place) -> None:
        store, stream, ref = place.new(), Stream(memory=64, compressed=32), None
        written, windows = [], []
        for _ in range(45):
            stream.read(4, memory=4, compressed=1)
            ref = store.commit(stream.snapshot(), parent=ref)
            made = manifest(store, ref)
            written.append(tuple(made.arrays[n].shape[2] for n in ("memory", "compressed")))
            windows.append(len(made.window))
        keyframes = [i for i, count in enumerate(windows) if count == 0]
        assert keyframes == [0, 16, 32]
        assert [written[i] for i in keyframes] == [(4, 1), (64, 17), (64, 32)]
        assert {written[i] for i in range(45) if i not in keyframes} == {(4, 1)}
        assert max(windows) == MAX_WINDOW - 1

    def test_commits_without_new_slots_do_not_lengthen_the_window(self, place: Place) -> None:
        store, stream, ref = place.new(), Stream(), None
        stream.read(8, memory=8, compressed=2)
        for _ in range(40):
            ref = store.commit(stream.snapshot(), parent=ref)
            stream.read(1)
        assert len(manifest(store, ref).window) == 1
        assert manifest(store, ref).arrays["memory"].shape == (3, 1, 0, 4)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slots_are_told_apart_along_any_axis(self, place: Place, axis: int) -> None:
        """What the parent has is not written again; what has changed in it is."""
        shape = [3, 5, 4]
        shape[axis] = 20
        stream = np.moveaxis(np.random.default_rng(0).random(shape), axis, 0)
        store, ref = place.new(), None
        for end, changed, written in (
            (8, None, 8),
            (11, None, 3),
            (13, None, 2),
            (14, 13, 8),  # the slot before the new one: the newest piece
            (15, None, 1),
            (16, 9, 8),  # one that fell to the middle of the keyframe
            (17, 11, 8),
            (18, None, 1),
        ):
            if changed is not None:
                stream[changed - 1] += 1
            if end % 3 == 0:
                store = place.open()  # what was written has to be read back
            data = np.moveaxis(stream[end - 8 : end], 0, axis)
            snapshot = Snapshot(0, {"w": Window(data, axis, end, 8)})
            ref = store.commit(snapshot, parent=ref)
            assert manifest(store, ref).arrays["w"].shape[axis] == written
            assert_equal(store.load(ref), snapshot)

    # --- branches

    def test_rewind_and_fork_copy_nothing(self, place: Place) -> None:
        store, stream, refs = place.new(), Stream(), []
        for _ in range(3):
            stream.read(4, memory=4)
            refs.append(store.commit(stream.snapshot(), parent=refs[-1] if refs else None))
        before = place.files()
        back = store.publish(refs[0], branch="main")
        fork = store.publish(refs[1].commit, branch="side")
        added = place.files().keys() - before.keys()
        assert added == {"refs/main/000000000003.json", "refs/side/000000000000.json"}

        assert [ref.seq for ref in store.refs("main")] == [0, 1, 2, 3]
        assert store.refs("main") == [*refs, back] and back.commit == refs[0].commit
        assert store.head("side") == fork and fork.commit == refs[1].commit
        assert store.branches() == ["main", "side"]
        assert store.nearest("side", 5) == refs[0].commit
        # Both go on from there.
        for branch, parent in (("main", back), ("side", fork)):
            stream.resume(store.load(parent))
            stream.read(2, memory=2)
            snapshot = stream.snapshot()
            assert_equal(store.load(store.commit(snapshot, branch=branch, parent=parent)), snapshot)

    def test_a_writer_that_is_behind_gets_a_conflict(self, place: Place) -> None:
        store = place.new()
        first = store.commit(Snapshot(0), parent=None)
        second = store.commit(Snapshot(0), parent=first)
        before = place.files()
        for stale in (None, first, replace(second, commit=first.commit)):
            with pytest.raises(Conflict, match=r"branch 'main' is at ref 1 .* fork"):
                store.commit(Snapshot(0), parent=stale)
        with pytest.raises(ValueError, match="fork first"):
            store.commit(Snapshot(0), branch="side", parent=second)
        assert place.files() == before

    def test_a_lost_race_leaves_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another writer publishes between this one's first look and its ref."""
        store, won = place.new(), []
        first = store.commit(Snapshot(0), parent=None)
        rival, publish = place.open(), store._refs.publish

        def late(*arguments: Any, **options: Any) -> Ref:
            won.append(rival.commit(Snapshot(0), parent=first))
            return publish(*arguments, **options)

        monkeypatch.setattr(store._refs, "publish", late)
        with pytest.raises(Conflict):
            store.commit(Snapshot(0), parent=first)
        assert store.refs("main") == [first, *won]
        assert len(place.commits()) == 2
        assert not [key for key in place.files() if ".tmp" in key]

    @pytest.mark.parametrize("writers", [2, 4])
    def test_racing_writers_lose_nothing(self, place: Place, writers: int) -> None:
        store, each = place.new(), 12 // writers
        empty = Window(np.zeros(0, np.int64), 0, 0, 8)
        store.commit(Snapshot(0, {"w": empty}), parent=None)
        acknowledged: dict[int, tuple[Commit, int]] = {}
        start = threading.Barrier(writers)

        def write(mine: Store, first: int) -> None:
            made = 0
            start.wait()
            while made < each:
                head = mine.head("main")
                assert head is not None
                past = mine.load(head)
                window, token = past.windows["w"], first + made
                data = np.append(window.data, np.int64(token))[-8:]
                windows = {"w": Window(data, 0, window.end + 1, 8)}
                try:
                    ref = mine.commit(
                        Snapshot(past.position + 1, windows, tokens=np.array([token])), parent=head
                    )
                except Conflict:
                    continue
                made += 1
                assert ref.seq not in acknowledged
                acknowledged[ref.seq] = ref.commit, token

        threads = [
            threading.Thread(target=write, args=(place.open(), 1000 * i)) for i in range(writers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        refs = store.refs("main")
        count = each * writers
        assert [ref.seq for ref in refs] == list(range(count + 1))
        assert {ref.seq: ref.commit for ref in refs[1:]} == {
            seq: commit for seq, (commit, _) in acknowledged.items()
        }
        # Each went on from the one before: the log holds every token, in the order of the refs.
        log = [acknowledged[seq][1] for seq in range(1, count + 1)]
        assert store.tokens(refs[-1], 0, count).tolist() == log
        assert len(place.commits()) == count + 1  # losers leave nothing
        store.verify()

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "é", "a\n", "x" * 200]
    )
    def test_branch_names(self, place: Place, name: str) -> None:
        store = place.new()
        ref = store.commit(Snapshot(0), parent=None)
        before = place.files()
        for use in (
            lambda: store.commit(Snapshot(0), branch=name, parent=None),
            lambda: store.publish(ref, branch=name),
            lambda: store.head(name),
            lambda: store.refs(name),
            lambda: store.writer(name),
        ):
            with pytest.raises(ValueError, match="a branch name has"):
                use()
        assert place.files() == before

    def test_a_writer_holds_its_branch_while_it_writes(self, place: Place) -> None:
        store, ref = place.new(), None
        with store.writer(), store.writer("side"):
            ref = store.commit(Snapshot(0), parent=None)
            place.open().commit(Snapshot(0), parent=ref)  # a courtesy, no guard
        with store.writer():
            assert store.branches() == ["main"]

    # --- what is read

    def test_walks_are_short(self, place: Place) -> None:
        store, ref = place.new(), None
        refs = []
        for i in range(self.walk):
            begin = ref.position if ref else 0
            position = begin + i % 3
            tokens = np.arange(begin, position, dtype=np.int32)
            ref = store.commit(Snapshot(position, tokens=tokens), parent=ref)
            refs.append(ref)
        assert ref is not None
        fresh, reads = place.open(), 0
        real = fresh._commits.manifest

        def counted(commit: Commit) -> Any:
            nonlocal reads
            reads += 1
            return real(commit)

        fresh._commits.manifest = counted  # type: ignore[assignment]
        for position in range(0, ref.position, 7):
            reads = 0
            expected = next(r for r in reversed(refs) if r.position <= position)
            assert fresh.nearest("main", position) == expected.commit
            assert fresh.tokens(ref, position, position + 1).tolist() == [position]
            assert reads <= 2 * 3 * math.log2(self.walk)
        assert fresh.tokens(ref, 0, ref.position).tolist() == list(range(ref.position))

    def test_what_is_not_there(self, place: Place) -> None:
        store = place.new()
        assert store.branches() == [] and store.head("main") is None and store.refs("main") == []
        with pytest.raises(NotFound, match="no branch 'main'"):
            store.nearest("main", 3)
        late = store.commit(
            Snapshot(10, tokens=np.arange(4)), parent=None
        )  # read 6 before it was bound
        assert store.tokens(late, 6, 10).tolist() == [0, 1, 2, 3]
        with pytest.raises(NotFound, match="begins at 6"):
            store.tokens(late, 5, 10)
        with pytest.raises(NotFound, match="the first is at 10"):
            store.nearest(late, 9)
        for start, stop in ((-1, 2), (3, 2), (0, 11)):
            with pytest.raises(ValueError, match="read 10"):
                store.tokens(late, start, stop)

    def test_fingerprints(self, place: Place) -> None:
        store = place.new()
        first = store.commit(Snapshot(0), parent=None)
        other = {**FINGERPRINTS, "model": "x" * 64}
        second = store.commit(Snapshot(0), parent=first, fingerprints=other)
        assert store.fingerprints_of(first) == FINGERPRINTS
        assert store.fingerprints_of(second) == other
        store.load(first, fingerprints=FINGERPRINTS)
        store.load(first, fingerprints={"model": "m" * 64})
        store.load(second, fingerprints=FINGERPRINTS, allow_mismatch=True)
        with pytest.raises(Mismatch, match=r"model is m+, but x+ is recorded") as caught:
            store.load(second, fingerprints=FINGERPRINTS)
        assert caught.value.differing == {"model": ("x" * 64, "m" * 64)}
        with pytest.raises(Mismatch, match="adapter is a, but nothing is recorded"):
            store.load(first, fingerprints={"adapter": "a"})
        with pytest.raises(ValueError, match="text to text"):
            store.load(first, fingerprints={"model": 3})  # type: ignore[dict-item]

    def test_reading_writes_nothing(self, place: Place) -> None:
        store, stream = place.new(), Stream()
        stream.read(8, memory=8)
        snapshot = stream.snapshot()
        ref = store.commit(snapshot, parent=None)
        before = place.files()
        reader = place.open()
        assert_equal(reader.load(reader.head("main") or ref), snapshot)
        reader.tokens(ref, 0, 8), reader.nearest("main", 8), reader.verify()
        assert reader.size() == sum(map(len, before.values()))
        assert place.files() == before

    # --- creating and deleting

    def test_a_session_from_beginning_to_end(self, place: Place) -> None:
        with pytest.raises(NotFound, match="no session here"):
            place.open()
        store = place.new(attributes={"title": "é"})
        with pytest.raises(StoreError, match=r"already\. Open it, or give another"):
            place.new()
        ref = store.commit(Snapshot(0), parent=None)
        again = place.open()
        assert again.head("main") == ref and again.session == store.session
        assert again.attributes == {"title": "é"} and again.fingerprints == FINGERPRINTS
        again.delete()
        assert place.files() == {}
        with pytest.raises(NotFound, match="no session here"):
            place.open()
        assert place.new().session != store.session

    @pytest.mark.parametrize("what", ["session", "ref"])
    def test_unknown_schema(self, place: Place, what: str) -> None:
        place.new().commit(Snapshot(0), parent=None)
        key = "session.json" if what == "session" else "refs/main/000000000000.json"
        place.write(key, sealed({**json.loads(place.files()[key]), "schema": 7}))
        with pytest.raises(UnsupportedSchema, match=r"schema 7 is not supported; .* reads 1, 2"):
            place.open().head("main")

    # --- damage

    def test_no_damage_is_silent(self, place: Place) -> None:
        """Every file, many ways: loading raises or is right; verifying raises."""
        store, made = history(place)
        rng, tried, noticed, number = random.Random(0), 0, 0, 0
        newest = {
            "refs/main/000000000003.json": ("main", made[2][0]),
            "refs/side/000000000000.json": ("side", None),
        }
        for name, data in place.files().items():
            for damaged in damages(data, rng):
                number += 1
                if damaged == data or same_json(damaged, data) or number % self.every:
                    continue
                place.write(name, damaged)
                tried += 1
                for ref, snapshot in (made[0], made[-1]):
                    try:
                        found = place.open().load(ref)
                    except StoreError as error:
                        noticed += 1
                        assert store.name in str(error)
                    else:
                        assert_equal(found, snapshot)
                if damaged is None and name in newest:
                    # A branch that loses its newest ref is what it was; nobody can tell.
                    assert place.open().head(newest[name][0]) == newest[name][1]
                else:
                    with pytest.raises(StoreError) as caught:
                        place.open().verify()
                    assert store.name in str(caught.value)
            place.write(name, data)
        store.verify()
        assert tried > 300 // self.every and noticed > 100 // self.every

    def test_sound_files_in_the_wrong_place(self, place: Place) -> None:
        """Swapped chunks, documents, refs, commits pass their own checksums, not the chain's."""
        store, made = history(place)
        commits = [f"commits/{ref.commit.name}" for ref, _ in made]
        refs = [f"refs/main/{i:012d}.json" for i in range(4)]
        for one, other, part in (
            (commits[2], commits[3], "memory/c.0.0.0.0"),
            (commits[0], commits[1], "compressed/c.0.0.0.0"),
            (commits[2], commits[3], "usage/c.0.0.0"),
            (commits[2], commits[3], "tokens/c.0"),
            (commits[2], commits[3], "zarr.json"),
            (commits[2], commits[3], None),
            (refs[0], refs[3], None),
            (refs[1], "refs/side/000000000000.json", None),
        ):
            files = place.files()
            for key, source in ((one, other), (other, one)):
                data = files[source]
                if part:
                    data = repacked({**members(files[key]), part: members(data)[part]})
                place.write(key, data)
            with pytest.raises(StoreError) as caught:
                place.open().verify()
            assert store.name in str(caught.value)
            for ref, snapshot in made:
                try:
                    assert_equal(place.open().load(ref), snapshot)
                except StoreError as error:
                    assert store.name in str(error)
            for key in (one, other):
                place.write(key, files[key])
            place.open().verify()


def history(place: Place) -> tuple[Store, list[tuple[Ref, Snapshot]]]:
    """Four commits whose windows need each other."""
    store, stream, made = place.new(), Stream(memory=12, compressed=8), []
    for _ in range(4):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        snapshot = replace(snapshot, arrays={"usage": snapshot.arrays["usage"]})
        made.append((store.commit(snapshot, parent=made[-1][0] if made else None), snapshot))
    store.publish(made[1][0], branch="side")
    return store, made


def damages(data: bytes, rng: random.Random) -> Iterator[bytes | None]:
    """Damaged versions of a file's content; None stands for no file."""
    yield None
    yield b""
    yield data[: rng.randrange(len(data))]
    yield data[:-1]
    yield data + b"\0"
    yield bytes(len(data))
    for _ in range(96 if data.startswith(b"PK") else 4):  # a commit is one file of many parts
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def same_json(damaged: bytes | None, data: bytes) -> bool:
    """Whether the damage is none: "e" and "E" mean the same in a number."""
    try:
        return bool(json.loads(damaged or b"") == json.loads(data))
    except ValueError:
        return False
