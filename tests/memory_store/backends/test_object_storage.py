"""The memory store in object storage, against an S3 server on this machine."""

import subprocess
import sys
import traceback
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import (
    Conflict,
    Corrupt,
    NotFound,
    ObjectStore,
    Ref,
    Retention,
    Snapshot,
    StoreError,
    create_store,
    open_store,
    places,
)
from memory_store.backends import object_client
from memory_store.backends.object_storage import Objects
from memory_store.format.header import create_header, read_header
from memory_store.places import named, occupied, session_names
from tests.memory_store.conformance import Place, StoreConformance
from tests.memory_store.conformance_upkeep import grown
from tests.support.s3 import KEY, SECRET, Request, S3Server
from tests.support.stores import ROOT, Stream, assert_equal, assert_same_bits

BUCKET = "shelf"


class Prefix(Place):
    """Objects of an obstore client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def create(self, **options: Any) -> ObjectStore:
        objects = Objects(self.client, "memory://s")
        options = {"attributes": None, "fingerprints": None, **options}
        return ObjectStore(objects, create_header(objects, **options))

    def open(self) -> ObjectStore:
        objects = Objects(self.client, "memory://s")
        return ObjectStore(objects, read_header(objects))

    def files(self) -> dict[str, bytes]:
        keys = [each["path"] for batch in self.client.list() for each in batch]
        return {key: bytes(self.client.get(key).bytes()) for key in sorted(keys)}

    def write(self, key: str, data: bytes | None) -> None:
        if data is None:
            self.client.delete(key)
        else:
            self.client.put(key, data)


class Bucket(Prefix):
    """A prefix of its own in the bucket of the S3 server."""

    def __init__(self, name: str = "s.zarr") -> None:
        self.url = f"s3://{BUCKET}/{uuid.uuid4().hex}/{name}"
        super().__init__(object_client.connect(self.url)[0])

    def create(self, **options: Any) -> ObjectStore:
        store = create_store(self.url, **options)
        assert isinstance(store, ObjectStore)
        return store

    def open(self) -> ObjectStore:
        store = open_store(self.url)
        assert isinstance(store, ObjectStore)
        return store


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    server = S3Server()
    server.make_bucket(BUCKET)
    yield server
    server.stop()


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    quick = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20)}
    retry = {"max_retries": 2, "retry_timeout": timedelta(seconds=5), "backoff": quick}
    monkeypatch.setattr(object_client, "RETRY", {**retry, "backoff": {**quick, "base": 2}})
    running.clear()
    yield running
    running.clear()


@pytest.fixture
def bucket(server: S3Server) -> Bucket:
    return Bucket()


class TestObjects(StoreConformance):
    @pytest.fixture
    def place(self) -> Prefix:
        from obstore.store import MemoryStore

        return Prefix(MemoryStore())


class TestS3(StoreConformance):
    histories: ClassVar[int] = 1
    steps: ClassVar[int] = 20
    every: ClassVar[int] = 20
    walk: ClassVar[int] = 50
    # The server takes seconds for what these do; `TestObjects` sees the same code.
    test_thinning_by_age: Any = None
    test_the_newest_stay_and_the_log_of_the_others: Any = None
    test_sound_files_in_the_wrong_place: Any = None
    test_gc_cut_short_goes_on: Any = None
    test_what_is_forgotten_says_so: Any = None
    test_recovery_replaces_refs: Any = None
    test_a_new_header_from_a_commit: Any = None
    test_damage_to_what_is_left_is_noticed: Any = None

    @pytest.fixture
    def place(self, bucket: Bucket) -> Bucket:
        return bucket


# --- how much is asked


def saved(place: Place, commits: int) -> tuple[Stream, Ref, Snapshot]:
    store, stream, ref = place.new(), Stream(memory=64, compressed=32), None
    for _ in range(commits):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        ref = store.commit(snapshot, parent=ref)
    assert ref is not None
    return stream, ref, snapshot


def test_a_commit_asks_little(bucket: Bucket, server: S3Server) -> None:
    """A put for the commit and one for the ref; nothing is read back."""
    store, stream, ref = bucket.new(), Stream(memory=64, compressed=32), None
    counts = []
    for _ in range(40):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        server.clear()
        ref = store.commit(snapshot, parent=ref)
        counts.append(server.counted())
    assert all(count["PUT"] == 2 for count in counts)
    # Is the next number free? Is the parent the head?
    assert all(count["GET"] <= 2 for count in counts)
    assert all(count.keys() <= {"PUT", "GET"} for count in counts)


def test_the_first_commit_after_opening_reads_the_windows_back(
    bucket: Bucket, server: S3Server
) -> None:
    stream, ref, _ = saved(bucket, 16)
    store = bucket.open()
    stream.read(1)
    server.clear()
    ref = store.commit(stream.snapshot(), parent=ref)
    assert server.counted()["GET"] <= 16 + 5  # of each commit both windows at once
    stream.read(1)
    server.clear()
    store.commit(stream.snapshot(), parent=ref)
    assert server.counted()["GET"] <= 3


def test_resuming_asks_little(bucket: Bucket, server: S3Server) -> None:
    """One part of each of at most 16 commits, and a few documents."""
    _, _, snapshot = saved(bucket, 16)
    server.clear()
    store = bucket.open()
    head = store.head("main")
    assert head is not None
    assert_equal(store.load(head), snapshot)
    # The header (is it there, and what does it say), the list of refs, the ref, the attributes.
    assert sum(server.counted().values()) == 16 + 5


# --- when answers are lost


def is_ref(request: Request) -> bool:
    return request.create_only and "/refs/" in request.path


def test_a_lost_answer_is_found_out(bucket: Bucket, server: S3Server) -> None:
    """The ref got through, though the client was not told: it recognizes its own."""
    store, first = bucket.new(), None
    for lost in (1, 2, 9):  # the answer to the request, to its repetition too, to all
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
def test_silence_after_the_ref(bucket: Bucket, server: S3Server, reached: bool) -> None:
    """Nobody knows whether it got through: the commit's objects stay, in case that it did."""
    store = bucket.new()
    first = store.commit(Snapshot(0), parent=None)
    gone: list[bool] = []

    def unheard(request: Request) -> bool:
        if is_ref(request) and not gone:
            gone.append(True)
            return not reached
        return bool(gone) and "/refs/" in request.path  # objects could be removed

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


def test_the_server_goes_in_the_middle_of_a_commit(bucket: Bucket, server: S3Server) -> None:
    """Whichever request is the last: the branch is at the old commit or at the new one."""
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


def test_what_was_written_before_an_error_is_removed(bucket: Bucket, server: S3Server) -> None:
    store = bucket.new()
    before = bucket.files()
    server.unheard = lambda request: request.method == "PUT" and "/commits/" in request.path
    with pytest.raises(StoreError, match=r"commits/.*\.zip: the storage refused while writing"):
        store.commit(Snapshot(0), parent=None)
    server.clear()
    assert bucket.files() == before
    # Commits of an early version are many objects, of which some were written already.
    old, other = ROOT / "tests" / "data" / "schema-1.zarr", Bucket()
    server.unheard = lambda request: request.method == "PUT" and "/tokens/" in request.path
    with pytest.raises(StoreError, match=r"tokens/.*: the storage refused while writing"):
        places.copy(old, other.url)
    server.clear()
    assert other.files() == {}
    places.copy(old, other.url)
    assert other.open().verify() == open_store(old).verify()


# --- what is refused


def whole(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_wrong_credentials(bucket: Bucket, server: S3Server) -> None:
    store = bucket.new()
    ref = store.commit(Snapshot(0), parent=None)
    server.authenticate(check=True)
    try:
        for use in (
            bucket.open,
            bucket.new,
            lambda: store.load(ref),
            lambda: store.refs("main"),
            lambda: store.commit(Snapshot(0), parent=ref),
            lambda: store.publish(ref, branch="side"),
            store.size,
            store.verify,
            store.delete,
        ):
            with pytest.raises(StoreError, match=r"not permitted.*Check the credentials") as caught:
                use()
            assert bucket.url in str(caught.value)
            shown = whole(caught.value)
            assert KEY not in shown and SECRET not in shown and "Debug source" not in shown
    finally:
        server.authenticate(check=False)
    assert bucket.open().head("main") == ref


def test_no_such_bucket(server: S3Server) -> None:
    for use in (open_store, create_store, occupied, session_names):
        with pytest.raises(StoreError, match=r"s3://nowhere.*: no such bucket. Check the name"):
            use("s3://nowhere/s.zarr")


def test_no_server(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"no answer.*Check the endpoint") as caught:
        open_store(f"s3://{BUCKET}/s.zarr")
    assert KEY not in whole(caught.value) and SECRET not in whole(caught.value)


def test_a_lost_object_is_named(bucket: Bucket) -> None:
    _, ref, _ = saved(bucket, 3)
    for key, data in bucket.files().items():
        if ref.commit.name in key and "/c." in key:
            for damaged in (None, data[:-1], bytes(len(data))):
                bucket.write(key, damaged)
                with pytest.raises(Corrupt, match=f"{bucket.url}/{key}: "):
                    bucket.open().load(ref)
            bucket.write(key, data)
    bucket.open().verify()


@pytest.mark.parametrize(
    "url",
    [
        "http://host/s.zarr",
        "file:///tmp/s.zarr",
        "S3://bucket/s.zarr",
        "s3://",
        "s3:///s.zarr",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "s3://bucket/a?key=hush",
        "s3://user:hush@bucket/a",
        "az://bucket/a#hush",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    for use in (open_store, create_store, occupied, session_names):
        with pytest.raises(ValueError, match=r"allowed: .*s3://bucket/prefix, gs://") as caught:
            use(url)
        assert "hush" not in str(caught.value)


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'streamlm\[objects\]'"):
        open_store("s3://bucket/s.zarr")


# --- where it is, and whose


def test_sessions_side_by_side(server: S3Server) -> None:
    shelf = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    assert session_names(shelf) == [] and not occupied(named(shelf, "a"))
    for name in ("b", "a", "a-2"):
        create_store(named(shelf, name))
    assert session_names(shelf) == session_names(f"{shelf}/") == ["a-2", "a", "b"]
    assert occupied(named(shelf, "a"))
    open_store(named(shelf, "a")).delete()
    assert session_names(shelf) == ["a-2", "b"]
    with pytest.raises(NotFound):
        open_store(named(shelf, "a"))
    with pytest.raises(StoreError, match=r"holds 'a-2.zarr' already"):
        create_store(shelf)


def test_credentials_from_the_files_of_amazons_tools(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = x\n[me]\naws_access_key_id = {KEY}\n"
        f"aws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / ".aws" / "config").write_text("[profile me]\nregion = eu-west-1\nx = %(y)s\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "me")
    assert object_client._aws_files() == {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "region": "eu-west-1",
    }
    store = create_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    assert store.commit(Snapshot(0), parent=None).seq == 0
    assert SECRET not in repr(store) and SECRET not in store.name


def test_zarr_reads_it(bucket: Bucket, tmp_path: Path) -> None:
    import zarr

    _, ref, snapshot = saved(bucket, 1)
    commit = tmp_path / ref.commit.name
    commit.write_bytes(bucket.files()[f"commits/{ref.commit.name}"])
    group = zarr.open_group(zarr.storage.ZipStore(commit), mode="r")
    for name, array in snapshot.arrays.items():
        assert_same_bits(np.asarray(group[name]), array)


def test_a_folder_needs_no_obstore(tmp_path: Path) -> None:
    code = """
import sys
from memory_store import InMemoryStore, Snapshot, create_store, open_store
create_store(sys.argv[1]).commit(Snapshot(0), parent=None)
open_store(sys.argv[1]), InMemoryStore.create()
assert not {"obstore", "zarr"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, check=True)


def test_copies_to_object_storage_and_back(server: S3Server, tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr", durability="normal")
    grown(store, 25)
    store.pin(store.refs("main")[3], "pin")
    store.gc(Retention(last=3))
    far = Bucket("far.zarr")
    places.copy(tmp_path / "s.zarr", far.url)
    assert far.open().verify() == store.verify()
    places.copy(far.url, tmp_path / "t.zarr")
    again = open_store(tmp_path / "t.zarr")
    assert again.verify() == store.verify() and again.pins() == store.pins()
    assert again.refs("main") == store.refs("main")
