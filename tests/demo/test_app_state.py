"""Which visitor has which shelf."""

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import gradio as gr

from apps.demo.app_state import VISITOR, Desk
from apps.demo.serving.launch import whose_shelves


class _Asks:
    """A request, as far as shelves look at it."""

    def __init__(self, username: str | None = None, key: str = "") -> None:
        self.username, self.cookies = username, {VISITOR: key}


def test_who_has_which_shelf(tmp_path: Path) -> None:
    def folder(whose: str, **who: str) -> str:
        desk = Desk(str(tmp_path), files="", whose=whose)  # type: ignore[arg-type]
        return desk.shelf(_Asks(**who)).folder  # type: ignore[arg-type]

    assert folder("one") == folder("one", username="ada") == str(tmp_path)
    names = ["ada", "Ada", "../ada", "ada/..", "ä", "", "~", "x" * 300]
    folders = [folder("user", username=name) for name in names if name]
    assert len(set(folders)) == len(folders)
    assert all(Path(path).parent == tmp_path / "users" for path in folders)
    assert folders[0].endswith("users/ada")
    one, two = folder("browser", key="0" * 32), folder("browser", key="1" * 32)
    assert one != two and "0" * 32 not in one
    for whose, who in (("user", {}), ("browser", {}), ("browser", {"key": "../.."})):
        with pytest.raises(gr.Error):
            folder(whose, **who)  # type: ignore[arg-type]
    assert whose_shelves("127.0.0.1", auth=False, shared=None) == "one"
    assert whose_shelves("0.0.0.0", auth=False, shared=None) == "browser"
    assert whose_shelves("0.0.0.0", auth=False, shared=True) == "one"
    assert whose_shelves("127.0.0.1", auth=True, shared=None) == "user"
