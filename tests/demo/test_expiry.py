"""Shelves of browsers are removed by age, and never while somebody uses them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo.app_state import VISITOR, Desk
from apps.demo.expiry import DAY, BrowserShelves
from apps.demo.shelf import Shelf
from streamlm.checkpoints.checkpoint import Checkpoint

NAMES = ["0" * 32, "1" * 32, "2" * 32]
START = 1_000_000_000.0


@pytest.fixture
def browsers(tmp_path: Path) -> BrowserShelves:
    """Three empty shelves, last used on days 0, 10 and 20; removed after 30."""
    shelves = BrowserShelves(tmp_path / "browsers", keep_days=30)
    for index, name in enumerate(NAMES):
        (shelves.folder / name).mkdir(parents=True)
        used(shelves.folder / name, 10 * index)
    return shelves


def used(path: Path, day: float) -> None:
    os.utime(path, (START + day * DAY,) * 2)


def left(shelves: BrowserShelves) -> list[str]:
    return sorted(path.name for path in shelves.folder.iterdir())


def test_the_oldest_go_first(browsers: BrowserShelves) -> None:
    assert browsers.clear(now=START + 30 * DAY) == []
    assert browsers.clear(now=START + 30 * DAY + 1) == NAMES[:1]
    assert left(browsers) == NAMES[1:]
    browsers.used(NAMES[1], now=START + 35 * DAY)
    assert browsers.clear(now=START + 60 * DAY) == NAMES[2:]
    assert browsers.clear(now=START + 65 * DAY + 1) == [NAMES[1]]
    browsers.used(NAMES[1], now=START)  # nothing there
    assert left(browsers) == [] == browsers.clear(now=START + 99 * DAY)


def test_zero_keeps_them_for_ever(browsers: BrowserShelves) -> None:
    for_ever = BrowserShelves(browsers.folder, keep_days=0)
    assert for_ever.clear(now=START + 9999 * DAY) == [] and left(browsers) == NAMES


def test_what_is_no_shelf_stays(browsers: BrowserShelves, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (browsers.folder / "whale.zarr").mkdir()
    (browsers.folder / ("a" * 32)).symlink_to(outside)
    (browsers.folder / f".gone-{NAMES[0]}").mkdir()  # of a process that was killed
    assert browsers.clear(now=START + 99 * DAY) == NAMES
    assert left(browsers) == ["a" * 32, "whale.zarr"] and (outside / "kept").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_shelf_in_use_stays_whole(
    browsers: BrowserShelves, tiny: Checkpoint, damaged: bool
) -> None:
    path = browsers.folder / NAMES[0]
    shelf, later = Shelf(str(path)), time.time() + 31 * DAY
    for name in ("a", "b"):
        with shelf.open(name, tiny, create=True) as session:
            session.feed(["one two three "])
    if damaged:  # the others' locks count all the same
        header = next(file for file in (path / "a.zarr").iterdir() if file.is_file())
        header.write_bytes(b"damaged")
    used(path, 0)
    assert NAMES[0] not in browsers.clear(now=START + 40 * DAY)  # saved just now
    with shelf.open("b", tiny) as session:
        assert NAMES[0] not in browsers.clear(now=later)
        session.feed(["four "])
    assert shelf.names() == ["a", "b"]
    assert browsers.clear(now=later) == [NAMES[0]] and not path.exists()


def test_a_request_is_a_use(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    def desk(whose: str, **options: int) -> Desk:
        return Desk(
            str(tmp_path), files=str(tmp_path), model=str(tiny_folder()), whose=whose, **options
        )

    request = gr.Request()
    request.request = type("Asked", (), {"cookies": {VISITOR: "a" * 32}})()
    one = desk("browser", keep_days=7)
    assert one.browsers is not None
    folder = Path(one.shelf(request).folder)
    folder.mkdir(parents=True)
    used(folder, 0)
    one.shelf(request)
    assert folder.stat().st_mtime > time.time() - 60
    assert one.browsers.clear() == [] and one.browsers.clear(now=time.time() + 8 * DAY)
    assert desk("one").browsers is None and desk("user").browsers is None
