"""The memory store in a dict."""

import os
from typing import Any

import pytest

from memory_store import InMemoryStore, Locked
from tests.memory_store.conformance.place import Place
from tests.memory_store.conformance.store import StoreConformance


class Dict(Place):
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def create(self, **options: Any) -> InMemoryStore:
        return InMemoryStore.create(self.kept, **options)

    def open(self) -> InMemoryStore:
        return InMemoryStore.open(self.kept)

    def files(self) -> dict[str, bytes]:
        return {key: data for key, data in self.kept.items() if ".lock" not in key}

    def write(self, key: str, data: bytes | None) -> None:
        self.kept.pop(key, None)
        if data is not None:
            self.kept[key] = data


class TestInMemory(StoreConformance):
    @pytest.fixture
    def place(self) -> Dict:
        return Dict()


def test_two_writers() -> None:
    place = Dict()
    store = place.new()
    with store.writer(), place.open().writer("side"):
        message = rf"open for writing already, in this process \({os.getpid()}"
        with pytest.raises(Locked, match=message):
            place.open().writer().__enter__()
        with pytest.raises(Locked):
            store.writer("side").__enter__()
    with place.open().writer():
        pass


def test_new_sessions_are_independent() -> None:
    one, other = InMemoryStore.create(), InMemoryStore.create()
    assert one.session != other.session
