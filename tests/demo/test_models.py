"""The models of a demo, and the model of a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

import streamlm
from apps.demo.app_state import AppState
from apps.demo.models import MOST_LOADED, Models
from apps.demo.render.chat_html import chat_html
from apps.demo.shelf import Refused, Shelf
from memory_store.places import open_store
from tests.support.chats import chat_folder


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(chat_folder(tmp_path_factory.mktemp("chat") / "chatty"))


def test_models_are_loaded_once_and_few_are_kept(
    chatty: str, tiny_folder: Callable[..., Path]
) -> None:
    models = Models(chatty, device="cpu")
    assert models.names[0] == chatty and "books" in models.names
    first = models.get(chatty)
    assert models.get(chatty) is first and models.chats(chatty) and not models.chats("books")
    others = [str(tiny_folder(seed=seed)) for seed in range(5, 5 + MOST_LOADED)]
    assert [models.get(other).checkpoint.name for other in others] == [
        Path(other).name for other in others
    ]
    assert not models.chats(others[0])
    assert models.get(chatty) is not first


def test_a_session_keeps_its_windows(chatty: str, tmp_path: Path) -> None:
    windows = {"segment_len": 16, "memory_len": 32, "compressed_len": 8}
    for name, settings in (("own", windows), ("default", {})):
        with streamlm.open(
            tmp_path / f"{name}.zarr", chatty, device="cpu", settings=settings
        ) as session:
            session.feed("It was the whale. ")
    app = AppState(str(tmp_path), files="", model=chatty, device="cpu")
    shelf = Shelf(str(tmp_path))
    own, default = (app.engine_of(shelf, name) for name in ("own", "default"))
    lengths = [engine.checkpoint.model.config.memory_len for engine in (own, default)]
    assert lengths[0] == 32 != lengths[1]
    assert app.engine_of(shelf, "new") is default and app.engine_of(shelf, "own") is own
    with shelf.open("own", own.checkpoint) as session:
        assert session.position


def test_the_model_of_a_session(
    chatty: str, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    app = AppState(str(tmp_path), files="", model=chatty, device="cpu")
    shelf = Shelf(str(tmp_path))
    assert app.model_of(shelf, "new") == chatty
    app.choose(shelf, "new", "books")
    assert app.model_of(shelf, "new") == "books" and app.model_of(shelf, "other") == chatty
    with pytest.raises(ValueError, match=r"model 'x'; allowed: .*books"):
        app.choose(shelf, "new", "x")
    with shelf.open("new", app.engine_of(shelf, "new").checkpoint, create=True) as session:
        session.feed("It was the whale. ")
    app.choose(shelf, "new", chatty)
    assert app.model_of(shelf, "new") == "books"
    assert app.models.of(open_store(tmp_path / "new.zarr")) == "books"
    with streamlm.open(tmp_path / "alien.zarr", tiny_folder(seed=9), device="cpu") as session:
        session.feed("It was the whale. ")
    with pytest.raises(Refused, match="alien was written with a different model from those here"):
        app.engine_of(shelf, "alien")


def test_messages_are_no_markup() -> None:
    talk = [
        {"role": "text", "content": "It was\n\nthe whale. " * 40},
        {"role": "user", "content": "<script>x</script> ${a}"},
        {"role": "assistant", "content": "<b>"},
    ]
    html = chat_html(talk, writing=True)
    assert "<script" not in html and "${" not in html and html.count("turn ") == 3
    assert "It was the whale." in html and " … " in html and len(html) < 1500
    assert 'class="turn assistant writing"' in html and 'class="turn user"' in html
    assert "writing" not in chat_html(talk) and chat_html([]) == ""
