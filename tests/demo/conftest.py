"""A demo server per test module, and visitors with a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo_server import LONG, DemoServer, Visit, Visitor, browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    with DemoServer(tmp_path_factory.mktemp("demo") / "sessions", model) as server:
        yield server


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes the tiny model some time to read."""
    file = tmp_path_factory.mktemp("texts") / "long.txt"
    file.write_text(LONG, encoding="utf-8")
    return file


@pytest.fixture
def visit(chromium: Any, server: DemoServer) -> Iterator[Visit]:
    """Opens the page as a new visitor; finally checks for errors and requests to other hosts."""
    visitors: list[Visitor] = []

    def visit(session: str = "", **options: Any) -> Visitor:
        visitors.append(Visitor(chromium, server, **options))
        return visitors[-1].visit(session)

    yield visit
    for visitor in visitors:
        visitor.close()
    for visitor in visitors:
        assert visitor.outside == [] and visitor.errors == []
