"""Sessions in object storage: an obstore client in memory, a bucket of an S3 server."""

import uuid
from typing import Any

from memory_store import ObjectStore, Ref, Snapshot, create_store, open_store
from memory_store.backends import object_client
from memory_store.backends.object_storage import ObjectBackend
from memory_store.format.header import create_header, read_header
from tests.memory_store.conformance.place import Place
from tests.support.stores import Stream

BUCKET = "shelf"


class Prefix(Place):
    """Objects of an obstore client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def create(self, **options: Any) -> ObjectStore:
        objects = ObjectBackend(self.client, "memory://s")
        options = {"attributes": None, "fingerprints": None, **options}
        return ObjectStore(objects, create_header(objects, **options))

    def open(self) -> ObjectStore:
        objects = ObjectBackend(self.client, "memory://s")
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
    """A new prefix in the bucket of the S3 server."""

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


def saved(place: Place, commits: int) -> tuple[Stream, Ref, Snapshot]:
    store, stream, ref = place.new(), Stream(memory=64, compressed=32), None
    for _ in range(commits):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        ref = store.commit(snapshot, parent=ref)
    assert ref is not None
    return stream, ref, snapshot
