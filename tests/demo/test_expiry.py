"""Browser shelves expire by age, and never while in use."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo.app_state import COOKIE, AppState
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
        set_time(shelves.folder / name, 10 * index)
    return shelves


def set_time(path: Path, day: float) -> None:
    os.utime(path, (START + day * DAY,) * 2)


def names(shelves: BrowserShelves) -> list[str]:
    return sorted(path.name for path in shelves.folder.iterdir())


def test_the_oldest_expire_first(browsers: BrowserShelves) -> None:
    assert browsers.remove_expired(now=START + 30 * DAY) == []
    assert browsers.remove_expired(now=START + 30 * DAY + 1) == NAMES[:1]
    assert names(browsers) == NAMES[1:]
    browsers.touch(NAMES[1], now=START + 35 * DAY)
    assert browsers.remove_expired(now=START + 60 * DAY) == NAMES[2:]
    assert browsers.remove_expired(now=START + 65 * DAY + 1) == [NAMES[1]]
    browsers.touch(NAMES[1], now=START)  # there is no such shelf
    assert names(browsers) == [] == browsers.remove_expired(now=START + 99 * DAY)


def test_zero_disables_expiry(browsers: BrowserShelves) -> None:
    unlimited = BrowserShelves(browsers.folder, keep_days=0)
    assert unlimited.remove_expired(now=START + 9999 * DAY) == [] and names(browsers) == NAMES


def test_other_files_are_left_alone(browsers: BrowserShelves, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (browsers.folder / "whale.zarr").mkdir()
    (browsers.folder / ("a" * 32)).symlink_to(outside)
    (browsers.folder / f".gone-{NAMES[0]}").mkdir()  # left by a killed process
    assert browsers.remove_expired(now=START + 99 * DAY) == NAMES
    assert names(browsers) == ["a" * 32, "whale.zarr"] and (outside / "kept").exists()


@pytest.mark.parametrize("corrupt", [False, True])
def test_a_shelf_in_use_is_kept(browsers: BrowserShelves, tiny: Checkpoint, corrupt: bool) -> None:
    path = browsers.folder / NAMES[0]
    shelf, later = Shelf(str(path)), time.time() + 31 * DAY
    for name in ("a", "b"):
        with shelf.open(name, tiny, create=True) as session:
            session.feed(["one two three "])
    if corrupt:  # the locks of the other sessions still count
        header = next(file for file in (path / "a.zarr").iterdir() if file.is_file())
        header.write_bytes(b"corrupt")
    set_time(path, 0)
    assert NAMES[0] not in browsers.remove_expired(now=START + 40 * DAY)  # saved just now
    with shelf.open("b", tiny) as session:
        assert NAMES[0] not in browsers.remove_expired(now=later)
        session.feed(["four "])
    assert shelf.names() == ["a", "b"]
    assert browsers.remove_expired(now=later) == [NAMES[0]] and not path.exists()


def test_a_request_refreshes_the_shelf(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    def app(sharing: str, **options: int) -> AppState:
        return AppState(
            str(tmp_path), files=str(tmp_path), model=str(tiny_folder()), sharing=sharing, **options
        )

    request = gr.Request()
    request.request = type("Asked", (), {"cookies": {COOKIE: "a" * 32}})()
    browser = app("browser", keep_days=7)
    assert browser.browsers is not None
    folder = Path(browser.shelf(request).folder)
    folder.mkdir(parents=True)
    set_time(folder, 0)
    browser.shelf(request)
    assert folder.stat().st_mtime > time.time() - 60
    assert browser.browsers.remove_expired() == []
    assert browser.browsers.remove_expired(now=time.time() + 8 * DAY)
    assert app("shared").browsers is None and app("user").browsers is None
