"""An S3 server on this machine, with an empty prefix for each test."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from memory_store.backends import object_client
from tests.memory_store.backends.buckets import BUCKET, Bucket
from tests.support.s3 import S3Server


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
