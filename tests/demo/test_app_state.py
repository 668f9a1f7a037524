"""The shelf of each visitor, by mode of sharing."""

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo.app_state import COOKIE, AppState
from apps.demo.serving.launch import sharing_mode


class Request:
    """The attributes of a request that determine its shelf."""

    def __init__(self, username: str | None = None, key: str = "") -> None:
        self.username, self.cookies = username, {COOKIE: key}


def test_each_visitor_gets_the_right_shelf(tmp_path: Path) -> None:
    def folder(sharing: str, **visitor: str) -> str:
        app = AppState(str(tmp_path), files="", sharing=sharing)  # type: ignore[arg-type]
        return app.shelf(Request(**visitor)).folder  # type: ignore[arg-type]

    assert folder("shared") == folder("shared", username="ada") == str(tmp_path)
    names = ["ada", "Ada", "../ada", "ada/..", "ä", "", "~", "x" * 300]
    folders = [folder("user", username=name) for name in names if name]
    assert len(set(folders)) == len(folders)
    assert all(Path(path).parent == tmp_path / "users" for path in folders)
    assert folders[0].endswith("users/ada")
    one, two = folder("browser", key="0" * 32), folder("browser", key="1" * 32)
    assert one != two and "0" * 32 not in one
    for sharing, visitor in (("user", {}), ("browser", {}), ("browser", {"key": "../.."})):
        with pytest.raises(gr.Error):
            folder(sharing, **visitor)  # type: ignore[arg-type]
    assert sharing_mode("127.0.0.1", auth=False, shared=None) == "shared"
    assert sharing_mode("0.0.0.0", auth=False, shared=None) == "browser"
    assert sharing_mode("0.0.0.0", auth=False, shared=True) == "shared"
    assert sharing_mode("127.0.0.1", auth=True, shared=None) == "user"
