"""URLs and credentials of object storage, its refusals, and several sessions in one bucket."""

import subprocess
import sys
import traceback
import uuid
from pathlib import Path

import pytest

from memory_store import NotFound, Snapshot, StoreError, create_store, open_store
from memory_store.backends import object_client
from memory_store.places import named, occupied, session_names
from tests.memory_store.backends.buckets import BUCKET, Bucket
from tests.support.s3 import KEY, SECRET, S3Server
from tests.support.stores import ROOT


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
def test_invalid_urls(url: str) -> None:
    for use in (open_store, create_store, occupied, session_names):
        with pytest.raises(ValueError, match=r"allowed: .*s3://bucket/prefix, gs://") as caught:
            use(url)
        assert "hush" not in str(caught.value)


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'streamlm\[objects\]'"):
        open_store("s3://bucket/s.zarr")


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


def test_credentials_from_aws_files(
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


def test_a_folder_needs_no_obstore(tmp_path: Path) -> None:
    code = """
import sys
from memory_store import InMemoryStore, Snapshot, create_store, open_store
create_store(sys.argv[1]).commit(Snapshot(0), parent=None)
open_store(sys.argv[1]), InMemoryStore.create()
assert not {"obstore", "zarr"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, check=True)
