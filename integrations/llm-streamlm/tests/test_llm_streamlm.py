"""The plugin for `llm`: options, streaming, and conversations that go on from a stored session."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

llm = pytest.importorskip("llm")
sys.path.insert(0, str(Path(__file__).parents[1]))

import llm_streamlm  # noqa: E402
from click.testing import CliRunner, Result  # noqa: E402
from llm.cli import cli  # noqa: E402
from llm.plugins import pm  # noqa: E402
from llm_streamlm.model import StreamlmModel  # noqa: E402

import streamlm  # noqa: E402
from tests.support.chats import CHAT_WINDOWS, chat_folder  # noqa: E402

WINDOWS = {**CHAT_WINDOWS, "precision": "float32"}
SEEDED = ("-o", "seed", "3", "-o", "max_tokens", "12", "-o", "recall", "0")
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat"))


class Plugin:
    """The plugin, with a tiny model that chats."""

    def __init__(self, source: Path) -> None:
        self.source = source

    @llm.hookimpl
    def register_models(self, register: Any) -> None:
        store = llm_streamlm.folder()
        register(StreamlmModel("tiny", folder=store / "tiny", source=self.source, settings=WINDOWS))
        register(
            StreamlmModel("other", folder=store / "other", source=self.source, settings=WINDOWS)
        )


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Calls the command `llm`, with a folder of its own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    plugins = [Plugin(folder)]
    if not any(each is llm_streamlm for each in pm.get_plugins()):  # else it is installed
        plugins.append(llm_streamlm)
    for plugin in plugins:
        pm.register(plugin)

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    yield run
    for plugin in plugins:
        pm.unregister(plugin)


def logged(run: Run) -> list[dict[str, Any]]:
    return json.loads(run("logs", "--json", "-n", "0").output)


def read_by(session: Path, folder: Path) -> str:
    with streamlm.open(session, streamlm.load(folder, settings=WINDOWS), readonly=True) as opened:
        return opened.text()


def test_the_models_that_are_here(run: Run) -> None:
    shown = run("models", "list").output
    assert "streamlm/books" in shown and "streamlm/tiny" in shown
    found = llm.get_model("streamlm")
    assert isinstance(found, StreamlmModel)


def test_a_conversation_is_one_session(run: Run, folder: Path) -> None:
    """As `Session.reply`, called with the same messages in one session."""
    one = run("-m", "streamlm/tiny", "Call me Ishmael.", "-s", "Be a whale.", *SEEDED).output
    two = run("-c", "And now?", *SEEDED).output
    session = streamlm.Session(streamlm.load(folder, settings=WINDOWS))
    for said, message in ((one, "Call me Ishmael."), (two, "And now?")):
        reply = session.reply(message, system="Be a whale.", seed=3, max_tokens=12)
        assert said == "".join(reply) + "\n"
    turns = logged(run)
    assert [turn["response_json"]["position"] for turn in turns][-1] == session.position
    assert sum(turn["input_tokens"] + turn["output_tokens"] for turn in turns) == session.position
    stores = list((llm_streamlm.folder() / "tiny").glob("*.zarr"))
    assert [path.stem for path in stores] == [turns[0]["conversation_id"]]


def test_turns_of_another_model_are_read_first(run: Run, folder: Path) -> None:
    run("-m", "streamlm/tiny", "Who are you?", *SEEDED)
    run("-c", "-m", "streamlm/other", "Say more.", *SEEDED)
    run("-c", "-m", "streamlm/tiny", "And now?", *SEEDED)
    turns = logged(run)
    said = [turn["response"] for turn in turns]
    name = f"{turns[0]['conversation_id']}.zarr"
    texts = {each: read_by(llm_streamlm.folder() / each / name, folder) for each in
             ("tiny", "other")}  # fmt: skip
    at = -1
    for text in ("Who are you?", said[0], "Say more.", said[1], "And now?", said[2]):
        at = texts["tiny"].index(text, at + 1)
    assert texts["tiny"].count("Who are you?") == 1  # what it knew was not read again
    assert "Say more." in texts["other"] and "And now?" not in texts["other"]


def test_a_reply_that_was_interrupted_is_taken_back(run: Run, folder: Path) -> None:
    first = run("-m", "streamlm/tiny", "Who are you?", *SEEDED).output
    cid = logged(run)[0]["conversation_id"]
    model = llm.get_model("streamlm/tiny")
    conversation = llm.Conversation(model=model, id=cid)
    history = [llm.user("Who are you?"), llm.assistant(first.removesuffix("\n"))]
    response = conversation.prompt("Wait.", messages=history, max_tokens=50, seed=1)
    next(pieces := iter(response))
    pieces.close()  # as by Ctrl-C
    path = llm_streamlm.folder() / "tiny" / f"{cid}.zarr"
    assert "Wait." in read_by(path, folder)
    run("-c", "And now?", *SEEDED)
    text = read_by(path, folder)
    assert "Wait." not in text and "And now?" in text and first.strip() in text


def test_a_text_is_continued(run: Run) -> None:
    """By the bundled model, which has no chat template."""
    one = run("-m", "streamlm/books", "The sea was", "-o", "max_tokens", "8", "--no-stream").output
    two = run("-c", "The town", "-o", "max_tokens", "8", "-o", "temperature", "0").output
    stores = list((llm_streamlm.folder() / "books").glob("*.zarr"))
    with streamlm.open(stores[0], readonly=True) as session:
        text = session.text()
    assert text.strip() == f"The sea was{one[:-1]}\n\nThe town{two[:-1]}".strip()
    refused = run("-m", "streamlm/books", "-s", "Be brief.", "The sea", code=1)
    assert "a system prompt for streamlm/books" in refused.output


def test_options(run: Run) -> None:
    shown = run("models", "-m", "streamlm/tiny", "--options").output
    for name in ("max_tokens", "temperature", "top_p", "min_p", "seed", "recall"):
        assert f"  {name}:" in shown
    greedy = ("-o", "temperature", "0", "-o", "max_tokens", "6", "-o", "keep", "false")
    texts = {run("-m", "streamlm/tiny", "Call me", *greedy).output for _ in range(2)}
    assert len(texts) == 1
    assert not (llm_streamlm.folder() / "tiny").exists()
    refused = run("-m", "streamlm/tiny", "Call me", "-o", "top_p", "3", code=1)
    assert "top_p = 3.0; allowed" in refused.output
    assert run("streamlm", "path").output.strip() == str(llm_streamlm.folder())


def test_pieces_come_one_by_one(run: Run) -> None:
    model = llm.get_model("streamlm/tiny")
    response = model.prompt("Call me", max_tokens=30, seed=1)
    pieces = list(response)
    assert len(pieces) > 5 and "".join(pieces) == response.text()
