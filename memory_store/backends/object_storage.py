"""A session in object storage: Amazon S3 and compatible services, Google Cloud, Azure.

Objects are atomic, and durable once the storage acknowledges them. The objects of a commit are
uploaded concurrently. When all of them are acknowledged, a conditional put creates the ref, which
fails if a ref of that number exists.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from memory_store.backend import AlreadyExists, Backend, Buffer, Extent, check_extent, missing
from memory_store.backends.memory import BytesContent
from memory_store.backends.object_client import (
    connect,
    is_no_bucket,
    is_obstores,
    is_refusal,
    reason,
    refused,
)
from memory_store.errors import Corrupt, StoreError
from memory_store.format.names import SESSION_FILE, ref_key

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

THREADS = 16  # concurrent requests
MAX_REQUEST = 2**25  # bytes; larger reads and writes are split into several requests
MAX_GAP = 2**12  # bytes; extents with a smaller gap between them share a request


class ObjectBackend:
    """The files of a session as objects; see `backend.Backend`.

    Args:
        client: an `obstore` client for the prefix.
        url: the name of the prefix in messages.
    """

    remote = True

    def __init__(self, client: "Client", url: str) -> None:
        self._client = client
        self._url = url
        self._coming: dict[Extent, Callable[[], memoryview]] = {}

    @classmethod
    def at(cls, url: str) -> Self:
        """The objects under the prefix of a URL."""
        return cls(*connect(url))

    def name(self, key: str = "") -> str:
        return f"{self._url}/{key}" if key else self._url

    def read(self, key: str) -> bytes:
        return bytes(self._take(Extent(key, 0, None, whole=True)))

    def read_prefix(self, key: str, limit: int) -> tuple[bytes, int]:
        data, size = self._get(key, {"range": (0, limit)})
        return bytes(data), size

    def open(self, extent: Extent) -> BytesContent:
        return BytesContent(self._take(extent))

    def check_size(self, extent: Extent) -> None:
        if extent in self._coming:
            self._coming[extent]()
        else:
            self._fetch([extent])

    def _take(self, extent: Extent) -> memoryview:
        coming = self._coming.pop(extent, None)
        return self._fetch([extent])[0] if coming is None else coming()

    def _fetch(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Fetch adjacent extents of one object with one request."""
        first, last = extents[0], extents[-1]
        options: Any = {}
        if first.size is not None and (first.start or not first.whole):
            options["range"] = (first.start, last.start + (last.size or 0))
        data, size = self._get(first.key, options, last)
        for extent in extents:
            check_extent(self.name(first.key), size, extent)
        return [data[extent.start - first.start :][: extent.size] for extent in extents]

    def _get(self, key: str, options: Any, due: Extent | None = None) -> tuple[memoryview, int]:
        """The content of an object or of a byte range, and the size of the whole object."""
        with self._errors("reading", key):
            try:
                response = self._client.get(key, options=options)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                raise missing(self.name(key)) from None
            except Exception as error:
                if not is_obstores(error) or "range" not in options:
                    raise
                # A range beyond the end of an object that was cut is refused.
                size = self._client.head(key)["size"]
                if due is not None:
                    check_extent(self.name(key), size, due)
                if size > options["range"][0]:
                    raise
                return memoryview(b""), size
            # The size is known before the content is transferred.
            if due is not None:
                check_extent(self.name(key), response.meta["size"], due)
            return memoryview(response.bytes()), response.meta["size"]

    @contextmanager
    def prefetch(self, wanted: Callable[[], Iterable[Extent]]) -> Iterator["ObjectBackend"]:
        pool, reader = ThreadPoolExecutor(THREADS), copy(self)
        try:
            coming: dict[Extent, Callable[[], memoryview]] = {}
            for extents in _gathered(wanted()):
                future = pool.submit(self._fetch, extents)
                coming |= {each: partial(_nth, future, at) for at, each in enumerate(extents)}
            reader._coming = coming
            yield reader
        finally:
            pool.shutdown(cancel_futures=True)

    def stamp(self, key: str) -> object:
        return key  # objects are written once

    def exists(self, key: str) -> bool:
        with self._errors("looking for", key):
            try:
                self._client.get(key)  # unlike GET, a refused HEAD has no error code
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return False
        return True

    def files(self, folder: str) -> list[str]:
        return [path.rpartition("/")[2] for path in self._list(folder)[0]]

    def folders(self, folder: str) -> list[str]:
        return [path.rpartition("/")[2] for path in self._list(folder)[1]]

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        with self._errors("listing", folder):
            listing = self._client.list_with_delimiter(folder)
            return [each["path"] for each in listing["objects"]], list(listing["common_prefixes"])

    def is_vacant(self) -> bool:
        return not any(self._list(""))

    def begin(self, data: bytes) -> None:
        objects, folders = self._list("")
        if SESSION_FILE in objects:
            raise self._used("a session")
        if objects or folders:
            raise self._used(repr([*objects, *folders][0]))
        if not self._create(SESSION_FILE, data):
            raise self._used("a session")

    def _used(self, what: str) -> StoreError:
        return StoreError(f"{self._url}: holds {what} already. Open it, or give another prefix.")

    @contextmanager
    def draft(self, key: str) -> Iterator["_Draft"]:
        draft = _Draft(self, key)
        try:
            yield draft
        except BaseException:
            draft.undo()
            raise
        finally:
            draft.pool.shutdown(cancel_futures=True)

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        if not self._create(ref_key(branch, seq), data):
            raise AlreadyExists

    def put(self, key: str, data: bytes) -> None:
        """Upload an object, in parts if it is large; returns when it is acknowledged."""
        with self._errors("writing", key):
            self._client.put(key, data, use_multipart=len(data) > MAX_REQUEST)

    def _create(self, key: str, data: bytes) -> bool:
        """Create an object; False if it exists and this attempt did not create it."""
        try:
            self._client.put(key, data, mode="create", use_multipart=False)
        except Exception as error:
            if not is_obstores(error):
                raise
            if is_refusal(error):
                raise refused(error, "writing", self.name(key)) from None
            # The response to a successful request may be lost, and its retry refused.
            try:
                existing: bytes | None = self.read(key)
            except Corrupt:  # missing, or too large
                existing = None
            except StoreError:
                raise self._unknown(key, error) from None
            if existing == data:
                return True
            if existing is not None:
                return False
            raise self._unknown(key, error) from None
        return True

    def _unknown(self, key: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.name(key)}: the storage did not answer ({reason(error)}); whether the object "
            "was written is unknown. Check the head of the branch when the storage is back."
        )

    def create(self, key: str, data: bytes) -> None:
        if not self._create(key, data):
            raise AlreadyExists

    def discard(self, key: str) -> None:
        self.remove([each["path"] for each in self._all(key)])

    def age(self, key: str) -> float:
        written = [each["last_modified"] for each in self._all(key)]
        return (datetime.now(UTC) - max(written)).total_seconds() if written else 0.0

    def unfinished(self) -> list[str]:
        return []  # objects are atomic

    def commits_lock(self, *, exclusive: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def remove(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        if keys:
            with self._errors("deleting", ""):
                self._client.delete(keys)

    def writer(self, branch: str) -> AbstractContextManager[object]:
        return nullcontext()

    def size(self) -> int:
        return sum(each["size"] for each in self._all())

    def delete(self) -> None:
        # Without its header it is no session, even if a crash leaves other objects.
        self.remove([SESSION_FILE])
        self.remove([each["path"] for each in self._all()])

    def _all(self, key: str = "") -> list[Any]:
        """The objects at and under a key."""
        with self._errors("listing", key):
            objects = [each for batch in self._client.list(key or None) for each in batch]
            return objects or ([self._client.head(key)] if key and self.exists(key) else [])

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_obstores(error):
                raise
            # obstore's message may contain the whole request with its signature: it is dropped.
            raise refused(error, doing, self.name(key)) from None


def _gathered(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """Batches of extents for one request each: of one object, close together, not too large."""
    batch: list[Extent] = []
    for extent in sorted(extents, key=lambda extent: (extent.key, extent.start)):
        if batch:
            last = batch[-1]
            joined = not (extent.whole or last.whole) and extent.key == last.key
            end = extent.start + (extent.size or 0)
            if (
                not joined
                or extent.start - last.start - (last.size or 0) > MAX_GAP
                or end - batch[0].start > MAX_REQUEST
            ):
                yield batch
                batch = []
        batch.append(extent)
    if batch:
        yield batch


def _nth(future: "Future[list[memoryview]]", at: int) -> memoryview:
    return future.result()[at]


class _Draft:
    """A commit that is being uploaded; its objects are unreferenced until its ref is created."""

    def __init__(self, objects: ObjectBackend, key: str) -> None:
        self.pool = ThreadPoolExecutor(THREADS)
        self._objects, self._key = objects, key
        self._puts: dict[str, Future[None]] = {}
        self._may_be_published = False

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        key = f"{self._key}/{key}" if key else self._key
        self._puts[key] = self.pool.submit(self._objects.put, key, b"".join(buffers))

    def persist(self) -> None:
        for put in self._puts.values():
            put.result()

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self.persist()
        self._may_be_published = True
        try:
            self._objects.publish(branch, seq, data)
        except AlreadyExists:
            self._may_be_published = False
            raise

    def undo(self) -> None:
        """Remove the commit, unless its ref was created or may have been created."""
        self.pool.shutdown(cancel_futures=True)
        if not self._may_be_published:
            with suppress(StoreError):  # unreferenced objects are harmless
                self._objects.remove(
                    [key for key, put in self._puts.items() if not put.cancelled()]
                )


if TYPE_CHECKING:

    def _conforms(backend: ObjectBackend) -> Backend:
        return backend
