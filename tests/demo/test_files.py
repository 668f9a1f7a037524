"""Uploads and exports: room, removal, and whose they are."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import streamlm
from apps.demo.app_state import COOKIE, AppState
from apps.demo.room import IN_USE, make_room
from apps.demo.serving.files import Files
from apps.demo.shelf import KEPT_EXPORTS, Refused, Shelf
from streamlm.checkpoints.checkpoint import Checkpoint

served = PlainTextResponse("served")


def files(folder: Path, *ages: float) -> list[Path]:
    """Files of 1,000 bytes, so many seconds old."""
    paths = []
    for number, age in enumerate(ages):
        path = folder / str(number) / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age, time.time() - age))
        paths.append(path)
    return paths


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    paths = files(tmp_path, 10 * IN_USE, 30 * IN_USE, 20 * IN_USE, 1.0)
    assert make_room(tmp_path, 4000) and all(path.exists() for path in paths)
    assert make_room(tmp_path, 2500)
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert not make_room(tmp_path, 500)
    assert [path.exists() for path in paths] == [False, False, False, True]


def test_uploads_have_a_total(tmp_path: Path) -> None:
    state = AppState(str(tmp_path / "sessions"), files=str(tmp_path / "files"), device="cpu")
    client = TestClient(Files(served, state=state, total=5000))
    files(tmp_path / "files", 1.0, 1.0)
    upload = "/gradio_api/upload"
    assert client.post(upload, content=bytes(2900)).text == "served"
    assert client.post(upload, content=bytes(3100)).status_code == 507
    assert client.post(upload, content=(b"x" for _ in range(3))).status_code == 411
    large = {"Content-Length": "200000000"}
    assert client.post(upload, content=b"x", headers=large).status_code == 413
    assert client.post(upload, content=bytes(2900)).text == "served"  # nothing is still counted


def test_an_export_is_its_owners(tmp_path: Path, tiny: Checkpoint) -> None:
    folder = tmp_path / "files"
    state = AppState(str(tmp_path / "sessions"), files=str(folder), device="cpu", sharing="browser")
    keys = ["a" * 32, "b" * 32]

    def shelf(key: str) -> Shelf:
        class Browser:
            cookies = {COOKIE: key}  # noqa: RUF012

        return state.shelf(Browser())  # type: ignore[arg-type]

    own = shelf(keys[0])
    with streamlm.open(f"{own.folder}/diary.zarr", tiny) as session:
        session.feed("Call me Ishmael. ")
    path = own.export("diary", folder)
    client = TestClient(Files(served, state=state))
    spellings = [
        str(path),
        str(path).replace("/", "%2F"),
        str(path).replace("exports", "exports//."),
        str(path).replace("exports", "other/../exports"),
    ]
    (folder / "other").mkdir()
    for spelled in spellings:
        address = f"/gradio_api/file={spelled}"
        own_cookie, other = ({"Cookie": f"{COOKIE}={key}"} for key in keys)
        assert client.get(address, headers=own_cookie).text == "served"
        assert client.get(address, headers=other).status_code == 403, spelled
        assert client.get(address).status_code == 403
    with pytest.raises(Refused, match="another visitor's"):
        shelf(keys[1]).import_(path, "stolen")
    assert own.import_(path, "again") == "again"
    for _ in range(5):
        own.export("diary", folder)
    assert len(list(path.parent.parent.iterdir())) == KEPT_EXPORTS
