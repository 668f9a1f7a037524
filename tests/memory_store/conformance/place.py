"""The interface of the conformance tests to a medium."""

from abc import ABC, abstractmethod
from typing import Any

from memory_store import Ref
from memory_store.format.manifest import Manifest
from memory_store.store import Store
from tests.support.stores import FINGERPRINTS


class Place(ABC):
    """The place of one session, with access to its files."""

    @abstractmethod
    def create(self, **options: Any) -> Store: ...

    @abstractmethod
    def open(self) -> Store:
        """Another store of the same session, with empty caches."""

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
