"""Sessions: creation, deletion, reads, walks, fingerprints, schemas."""

import json
import math
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import Commit, Mismatch, NotFound, Snapshot, StoreError, UnsupportedSchema
from memory_store.format.json import sealed
from tests.memory_store.conformance.place import Place
from tests.support.stores import FINGERPRINTS, Stream, assert_equal


class SessionConformance:
    """Part of `StoreConformance`."""

    walk: ClassVar[int] = 200  # commits in the long walk

    def test_walks_take_logarithmic_steps(self, place: Place) -> None:
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

    def test_missing_branches_positions_and_tokens(self, place: Place) -> None:
        store = place.new()
        assert store.branches() == [] and store.head("main") is None and store.refs("main") == []
        with pytest.raises(NotFound, match="no branch 'main'"):
            store.nearest("main", 3)
        late = store.commit(
            Snapshot(10, tokens=np.arange(4)), parent=None
        )  # 6 tokens were read before the session was stored
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
        snapshot = Snapshot(0, attributes={"name": ["a", 1]})
        second = store.commit(snapshot, parent=first, fingerprints=other)
        assert store.attributes_of(first) == {} and store.attributes_of(second) == {
            "name": ["a", 1]
        }
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
        with pytest.raises(ValueError, match="allowed: strings by strings"):
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

    def test_create_open_delete(self, place: Place) -> None:
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
