"""The memory store in object storage, against an S3 server on this machine."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import (
    Conflict,
    Corrupt,
    Retention,
    Snapshot,
    StoreError,
    create_store,
    open_store,
    places,
)
from tests.memory_store.backends.buckets import Bucket, Prefix, saved
from tests.memory_store.conformance.logs import indexed, numbered, rows
from tests.memory_store.conformance.store import StoreConformance
from tests.memory_store.conformance.upkeep import grown
from tests.support.s3 import Request, S3Server
from tests.support.stores import ROOT, Stream, assert_equal, assert_same_bits, rows_of


class TestObjects(StoreConformance):
    # Histories and damage are the work of the store, which `TestInMemory` tries longer.
    histories: ClassVar[int] = 1
    every: ClassVar[int] = 12

    @pytest.fixture
    def place(self) -> Prefix:
        from obstore.store import MemoryStore

        return Prefix(MemoryStore())


class TestS3(StoreConformance):
    walk: ClassVar[int] = 25
    writers: ClassVar[tuple[int, ...]] = (2,)
    # These take seconds on the server; `TestObjects` runs the same code.
    test_thinning_by_age: Any = None
    test_gc_keeps_the_newest_and_the_log: Any = None
    test_misplaced_files_are_detected: Any = None
    test_an_interrupted_gc_can_be_repeated: Any = None
    test_deleted_tokens_raise_not_found: Any = None
    test_recovery_replaces_refs: Any = None
    test_the_header_is_rebuilt_from_a_commit: Any = None
    test_damage_to_logs_is_detected: Any = None
    test_any_history_of_rows: Any = None
    test_gc_keeps_rows_with_token_ids: Any = None
    test_damage_to_rows_of_deleted_snapshots: Any = None
    test_an_interrupted_gc_loses_no_rows: Any = None
    test_pins_are_verified_and_recovered: Any = None
    test_no_damage_is_silent: Any = None
    test_copies_have_the_rows: Any = None
    test_a_copy_is_complete_and_independent: Any = None
    test_lost_newest_refs_are_noticed_and_restored: Any = None
    test_rewinds_and_forks_are_no_losses: Any = None
    test_gc_keeps_pins_forks_and_heads: Any = None
    test_a_pinned_snapshot_that_is_gone_is_noticed: Any = None
    test_any_history_loads_bit_for_bit: Any = None
    test_commits_of_two_branches_are_not_mixed: Any = None
    test_a_lost_branch_beside_another_is_noticed: Any = None
    test_ancestors_that_no_ref_names_stay: Any = None
    test_a_branch_that_others_need_is_not_deleted: Any = None
    test_a_walk_visits_a_commit_once: Any = None
    test_recovery_needs_the_newest_token_ids: Any = None
    test_damaged_refs_are_restored_as_they_were: Any = None
    test_recovery_finds_the_newest_loadable_snapshot: Any = None
    test_every_dtype_and_layout: Any = None
    test_gc_keeps_everything_by_default: Any = None
    test_changed_slots_are_detected_along_any_axis: Any = None
    test_only_new_slots_are_written: Any = None
    test_branch_names: Any = None
    test_commits_without_new_slots_do_not_lengthen_the_window: Any = None
    test_an_interrupted_deletion_of_a_branch_is_repeated: Any = None
    test_recovery_goes_on_where_opening_would: Any = None
    test_spans_and_snapshots_read_no_rows: Any = None
    test_recovery_reports_older_token_ids: Any = None
    test_gaps_late_beginnings_and_backfills: Any = None
    test_forks_and_rewinds_have_rows_of_their_own: Any = None

    @pytest.fixture
    def place(self, bucket: Bucket) -> Bucket:
        return bucket


# --- the number of requests


def test_requests_of_a_commit(bucket: Bucket, server: S3Server) -> None:
    """One put for the commit and one for the ref; nothing is read back."""
    store, stream, ref = bucket.new(), Stream(memory=64, compressed=32), None
    counts = []
    for _ in range(40):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        server.clear()
        ref = store.commit(snapshot, parent=ref)
        counts.append(server.counted())
    assert all(count["PUT"] == 2 for count in counts)
    # Is the next number free? Is the parent the head? At first also: is it the session still?
    assert counts[0]["GET"] <= 3 and all(count["GET"] <= 2 for count in counts[1:])
    assert all(count.keys() <= {"PUT", "GET"} for count in counts)


def test_the_first_commit_after_opening_reads_the_windows_back(
    bucket: Bucket, server: S3Server
) -> None:
    stream, ref, _ = saved(bucket, 16)
    store = bucket.open()
    stream.read(1)
    server.clear()
    ref = store.commit(stream.snapshot(), parent=ref)
    assert server.counted()["GET"] <= 16 + 5  # both windows of a commit in one request
    stream.read(1)
    server.clear()
    store.commit(stream.snapshot(), parent=ref)
    assert server.counted()["GET"] <= 3


def test_requests_of_resuming(bucket: Bucket, server: S3Server) -> None:
    """One range of each of at most 16 commits, and a few documents."""
    _, _, snapshot = saved(bucket, 16)
    server.clear()
    store = bucket.open()
    head = store.head("main")
    assert head is not None
    assert_equal(store.load(head), snapshot)
    # The header twice (its existence and its content), the list of refs, the ref, the manifest.
    assert sum(server.counted().values()) == 16 + 5


def test_requests_of_a_log(bucket: Bucket, server: S3Server) -> None:
    """The first walk reads every manifest; the rows take one request for each commit."""
    refs = indexed(bucket.new(), 20)
    store, expected = bucket.open(), rows(numbered(0, 200))
    for spans, manifests in (([(0, 200)], 20), ([(0, 200)], 0)):
        server.clear()
        assert store.log_spans(refs[-1], "keys") == spans
        assert server.counted() == {"GET": manifests + 1}  # and the list of `past`
    server.clear()
    assert rows_of(store, refs[-1], "keys") == expected
    assert server.counted() == {"GET": 20 + 1}
    server.clear()
    assert next(bucket.open().log(refs[-1], "keys", 185, 200))[0] == 185
    assert server.counted() == {"GET": 2 + 2 + 1 + 2}  # two for the header


# --- lost responses


def is_ref(request: Request) -> bool:
    return request.create_only and "/refs/" in request.path


def test_a_lost_response_is_detected(bucket: Bucket, server: S3Server) -> None:
    """The ref was created without a response: the client recognizes its own ref."""
    store, first = bucket.new(), None
    for lost in (1, 2, 9):  # the response to the request, to its retry too, to all retries
        left = [lost]

        def unanswered(request: Request, left: list[int] = left) -> bool:
            left[0] -= is_ref(request)
            return is_ref(request) and left[0] >= 0

        server.clear()
        server.unanswered = unanswered
        ref = store.commit(Snapshot(0), parent=first)
        assert left[0] < lost
        server.clear()
        assert store.head("main") == ref and (first is None or ref.seq == first.seq + 1)
        first = ref
    server.unanswered = is_ref
    again = store.publish(ref, branch="main")
    server.clear()
    assert store.head("main") == again
    store.verify()


@pytest.mark.parametrize("reached", [True, False])
def test_no_response_to_the_ref(bucket: Bucket, server: S3Server, reached: bool) -> None:
    """Whether the ref was created is unknown: the objects of the commit stay."""
    store = bucket.new()
    first = store.commit(Snapshot(0), parent=None)
    gone: list[bool] = []

    def unheard(request: Request) -> bool:
        if is_ref(request) and not gone:
            gone.append(True)
            return not reached
        return bool(gone) and "/refs/" in request.path  # removing objects would succeed

    server.unheard, server.unanswered = unheard, is_ref
    with pytest.raises(StoreError, match=r"main/000000000001\.json: the storage did not answer"):
        store.commit(Snapshot(0), parent=first)
    server.clear()
    head = bucket.open().head("main")
    assert head is not None and head.seq == int(reached)
    assert_equal(bucket.open().load(head), Snapshot(0))
    assert len(bucket.commits()) == 2
    if reached:
        with pytest.raises(Conflict):
            store.commit(Snapshot(0), parent=first)
    else:
        head = store.commit(Snapshot(0), parent=first)
    assert store.commit(Snapshot(0), parent=head).seq == 2
    store.verify()


def test_the_server_fails_during_a_commit(bucket: Bucket, server: S3Server) -> None:
    """The server fails after any request: the branch is at the old commit or at the new one."""
    store, stream = bucket.new(), Stream()
    stream.read(4, memory=4)
    old = stream.snapshot()
    parent = store.commit(old, parent=None)
    stream.read(4, memory=4)
    new = stream.snapshot()
    server.clear()
    done, served = False, 0
    while not done:
        left = [served]

        def unheard(request: Request, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        server.unheard = unheard
        try:
            ref = store.commit(new, parent=parent)
            done = True
        except StoreError as error:
            assert bucket.url in str(error)
        server.clear()
        head = bucket.open().head("main")
        assert head is not None
        assert head == (ref if done else parent)
        assert_equal(bucket.open().load(head), new if done else old)
        served += 1
    assert served > 4
    store.verify()


def test_an_error_removes_uploaded_objects(bucket: Bucket, server: S3Server) -> None:
    store = bucket.new()
    before = bucket.files()
    server.unheard = lambda request: request.method == "PUT" and "/commits/" in request.path
    with pytest.raises(StoreError, match=r"commits/.*\.zip: the storage refused while writing"):
        store.commit(Snapshot(0), parent=None)
    server.clear()
    assert bucket.files() == before
    # Commits of schema 1 are many objects, some of which were uploaded before the error.
    old, other = ROOT / "tests" / "data" / "schema-1.zarr", Bucket()
    server.unheard = lambda request: request.method == "PUT" and "/tokens/" in request.path
    with pytest.raises(StoreError, match=r"tokens/.*: the storage refused while writing"):
        places.copy(old, other.url)
    server.clear()
    assert other.files() == {}
    places.copy(old, other.url)
    assert other.open().verify() == open_store(old).verify()


def test_damaged_objects_are_named(bucket: Bucket) -> None:
    _, ref, _ = saved(bucket, 3)
    for key, data in bucket.files().items():
        if ref.commit.name in key and "/c." in key:
            for damaged in (None, data[:-1], bytes(len(data))):
                bucket.write(key, damaged)
                with pytest.raises(Corrupt, match=f"{bucket.url}/{key}: "):
                    bucket.open().load(ref)
            bucket.write(key, data)
    bucket.open().verify()


def test_objects_that_were_cut_are_damage(bucket: Bucket) -> None:
    """Not a refusal of the storage, which has nothing at the end that they had."""
    _, ref, _ = saved(bucket, 3)
    key = f"commits/{ref.commit.name}"
    data = bucket.files()[key]
    for n in (0, 1, len(data) // 2):
        bucket.write(key, data[:n])
        with pytest.raises(Corrupt, match=key):
            bucket.open().load(ref)
    bucket.open().recover()  # the head is the snapshot before it
    head = bucket.open().head("main")
    assert head is not None and head.position < ref.position
    bucket.open().load(head)


def test_zarr_reads_it(bucket: Bucket, tmp_path: Path) -> None:
    import zarr

    _, ref, snapshot = saved(bucket, 1)
    commit = tmp_path / ref.commit.name
    commit.write_bytes(bucket.files()[f"commits/{ref.commit.name}"])
    group = zarr.open_group(zarr.storage.ZipStore(commit), mode="r")
    for name, array in snapshot.arrays.items():
        assert_same_bits(np.asarray(group[name]), array)


def test_copies_to_object_storage_and_back(server: S3Server, tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr", durability="normal")
    grown(store, 12)
    store.pin(store.refs("main")[3], "pin")
    store.gc(Retention(last=3))
    far = Bucket("far.zarr")
    places.copy(tmp_path / "s.zarr", far.url)
    assert far.open().verify() == store.verify()
    places.copy(far.url, tmp_path / "t.zarr")
    again = open_store(tmp_path / "t.zarr")
    assert again.verify() == store.verify() and again.pins() == store.pins()
    assert again.refs("main") == store.refs("main")
