"""Commits: snapshots load bit for bit, and only new slots are written."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from memory_store import Commit, Ref, Snapshot, Window
from memory_store.format.manifest import MAX_WINDOW
from memory_store.format.zarr import FILL
from tests.memory_store.conformance.place import Place, manifest
from tests.support.stores import Stream, assert_equal, assert_same_bits, members


class CommitConformance:
    """Part of `StoreConformance`."""

    histories: ClassVar[int] = 4  # random histories that are tried
    steps: ClassVar[int] = 45  # of each
    writers: ClassVar[Sequence[int]] = (2, 4)  # that race, in one test each

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "seed" in metafunc.fixturenames:
            metafunc.parametrize("seed", range(self.histories))
        if "writers" in metafunc.fixturenames:
            metafunc.parametrize("writers", self.writers)

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
                if rng.random() < 0.05:  # a caller that changes committed slots
                    stream.window["memory"] = stream.window["memory"] ^ 1
                if rng.random() < 0.05:  # a caller that removes slots
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
    def test_changed_slots_are_detected_along_any_axis(self, place: Place, axis: int) -> None:
        """Unchanged slots of the parent are not written again; changed slots are."""
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
            (16, 9, 8),  # a slot in the middle of the keyframe
            (17, 11, 8),
            (18, None, 1),
        ):
            if changed is not None:
                stream[changed - 1] += 1
            if end % 3 == 0:
                store = place.open()  # has to read the stored slots back
            data = np.moveaxis(stream[end - 8 : end], 0, axis)
            snapshot = Snapshot(0, {"w": Window(data, axis, end, 8)})
            ref = store.commit(snapshot, parent=ref)
            assert manifest(store, ref).arrays["w"].shape[axis] == written
            assert_equal(store.load(ref), snapshot)
