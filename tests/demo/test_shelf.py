"""A shelf of sessions: its operations and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.shelf import Refused, Shelf
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine
from streamlm.sessions.shelf import open_named


def test_refusals_name_the_reason_and_no_paths(
    tmp_path: Path, tiny: Checkpoint, tiny_folder: Callable
) -> None:
    from streamlm.checkpoints.checkpoint import load_checkpoint

    shelf, engine = Shelf(str(tmp_path), max_sessions=2), Engine(tiny, rows=1)
    with shelf.open("a", tiny, create=True) as session:
        session.feed(["one two three "])
        for forbidden in (
            lambda: shelf.open("a", tiny).__enter__(),
            lambda: shelf.rename("a", "b"),
            lambda: shelf.delete("a"),
        ):
            with pytest.raises(Refused, match="a is in use: another page or the command line"):
                forbidden()
    refused = {
        "../b": "allowed: NAME or NAME@BRANCH",
        "b/c": "allowed: NAME or NAME@BRANCH",
        "": "Choose a session first",
        "nobody": r"no session 'nobody' in the sessions; there are: a",
        "a@side": "session 'a' has no branch 'side'",
    }
    for name, reason in refused.items():
        with pytest.raises(Refused, match=reason) as caught:
            shelf.open(name, tiny).__enter__()
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(Refused, match="a different model"):
        shelf.open("a", load_checkpoint(tiny_folder(seed=2), device="cpu")).__enter__()
    assert shelf.fork("a", "side", engine, tokens=2) == "a@side"
    assert [(row.name, row.position) for row in shelf.rows()][1] == ("a@side", 2)
    shelf.rewind("a@side", engine, tokens=1)
    assert [(row.name, row.position) for row in shelf.rows()][1] == ("a@side", 1)
    file = shelf.export("a@side", tmp_path)
    assert shelf.import_(file, "b") == "b" and shelf.names() == ["a", "a@side", "b", "b@side"]
    for other in (
        lambda: shelf.import_(file, "c"),
        lambda: shelf.open("c", tiny, create=True).__enter__(),
    ):
        with pytest.raises(Refused, match="You have 2 sessions; delete one"):
            other()
    (tmp_path / "b.zarr" / "session.json").write_text("{")
    assert "b" in shelf.names()  # corrupt, but still listed
    with pytest.raises(Refused) as caught:
        shelf.history("b")
    assert str(tmp_path) not in str(caught.value)


def test_an_export_is_small_and_complete(
    tmp_path: Path, tiny: Checkpoint, prose: Callable[..., str]
) -> None:
    shelf = Shelf(str(tmp_path / "sessions"))
    with open_named(shelf.folder, "book", tiny, create=True, keep_all=True) as session:
        for seed in range(12):
            session.feed(prose(30, seed=seed))
            session.save()
        text, position = session.text(), session.position
    exported = shelf.export("book", tmp_path)
    stored = sum(file.stat().st_size for file in (tmp_path / "sessions").rglob("*.*"))
    assert exported.stat().st_size < 0.6 * stored
    shelf.import_(exported, "copy")
    with shelf.open("copy", tiny) as session:
        assert session.position == position and session.text() == text
        session.rewind(tokens=position // 2)
        assert text.startswith(session.text()) and session.position == position // 2
