"""The API: the README's example, refusals, and MCP clients."""

import asyncio
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import streamlm
from tests.support.chats import CHAT_WINDOWS, chat_folder
from tests.support.demo_server import ROOT, DemoServer
from tests.support.recalls import FACT, QUESTION, session_with_fact

httpx = pytest.importorskip("httpx", reason="needs gradio: pip install 'streamlm[demo]'")
gradio_client = pytest.importorskip(
    "gradio_client", reason="needs gradio: pip install 'streamlm[demo]'"
)

TOOLS = {
    "list_sessions",
    "read_text",
    "generate_text",
    "chat",
    "score_text",
    "recall",
    "inspect_memory",
    "rewind",
    "fork",
}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that chats, which all of these calls are of."""
    return chat_folder(tmp_path_factory.mktemp("model") / "chatty")


@pytest.fixture(scope="module")
def server(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    with DemoServer(tmp_path_factory.mktemp("demo") / "sessions", chatty, "--mcp") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: DemoServer) -> Any:
    return gradio_client.Client(server.address, verbose=False)


def test_the_readme_example(
    server: DemoServer, chatty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "apps" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```$", text)
    assert "http://127.0.0.1:7860/" in block
    exec(block.replace("http://127.0.0.1:7860/", server.address), {})
    output = capsys.readouterr().out
    assert re.match(r"Read \d+ tokens at .* bits per byte; whale is saved at token \d+\.\n", output)
    assert "whale@calm is back at token 5" in output and "['whale', 'whale@calm']" in output
    with streamlm.open(server.store / "whale.zarr", chatty, device="cpu", create=False) as session:
        assert session.text().startswith("Call me Ishmael. Some years ago…It is a way I have")


def test_refusals_reach_the_client(client: Any) -> None:
    for arguments, name, message in (
        (("../up", "text"), "/read_text", "allowed: NAME or NAME@BRANCH"),
        (("a", ""), "/read_text", "is empty"),
        (("a", "a\x00b"), "/read_text", "looks binary"),
        (("nobody",), "/inspect_memory", "has read nothing yet"),
        (("nobody", "Who?"), "/recall", "nobody has read nothing yet"),
        (("a", "Who?", 0), "/recall", "k = 0; allowed: 1 to 3"),
        (("a", "", 5, 0.8, 0.95, 1, "", 1), "/generate_text", "Recall needs a prompt"),
        (("nobody", 5), "/rewind", "no session 'nobody'"),
        (("a", "", 5000), "/generate_text", "max_tokens = 5000; allowed: 0 to 1000"),
        (("a", "Who?", "", 5000), "/chat", "max_tokens = 5000; allowed: 0 to 1000"),
        (("a", "", 5, -1.0), "/generate_text", "temperature = -1.0; allowed"),
        (
            ("a", "", 5, 0.8, 0.95, 1, "\n.".join("abcdefghijklmnopqrstuvw")),
            "/generate_text",
            "at most 20",
        ),
    ):
        # Messages are escaped for the page, which would show markup as such.
        with pytest.raises(Exception, match=re.escape(message)):
            client.predict(*arguments, api_name=name)


def test_generation_ends_before_a_stop_string(client: Any) -> None:
    options = {"prompt": "Then", "max_tokens": 40, "temperature": 0, "api_name": "/generate_text"}
    whole = client.predict("one", **options)
    stop = whole[30:33]
    stopped = client.predict("two", stop=f"never\n{stop}\n\n", **options)
    assert stopped == whole[: whole.find(stop)] != ""


def test_a_chat(chatty: Path, server: DemoServer, client: Any) -> None:
    """Two messages of one chat; the session is that of the command line."""
    options = {"system": "Be a whale.", "max_tokens": 6, "api_name": "/chat"}
    first = client.predict("c", "Who?", seed=3, **options)
    client.predict("c", "Why?", **options)
    with pytest.raises(Exception, match="begun with another system prompt"):
        client.predict("c", "Why?", **{**options, "system": "Be a ship."})
    with pytest.raises(Exception, match="The message has 8,001 characters"):
        client.predict("c", "x" * 8001, **options)
    with pytest.raises(Exception, match="The system prompt has 8,001 characters"):
        client.predict("c", "Why?", **{**options, "system": "x" * 8001})
    with streamlm.open(server.store / "c.zarr", chatty, device="cpu", readonly=True) as session:
        turns = [(one["role"], one["content"]) for one in session.transcript()]
    assert turns[:2] == [("system", "Be a whale."), ("user", "Who?")] and turns[3][1] == "Why?"
    assert turns[2][1].removesuffix("\ufffd") == first and len(turns) == 5


def test_recall(chatty: Path, server: DemoServer, client: Any) -> None:
    """A question finds what left memory, and a message is answered with it."""
    store = server.store / "log.zarr"
    session_with_fact(store, chatty)
    (best,) = client.predict("log", QUESTION, 2, api_name="/recall")
    assert FACT in best["text"] and best["sure"]
    assert datetime.fromisoformat(best["saved"]) <= datetime.now().astimezone()
    with pytest.raises(Exception, match="recall = 4; allowed: 0 to 3"):
        client.predict("log", QUESTION, recall=4, api_name="/chat")
    client.predict("log", QUESTION, max_tokens=2, recall=1, api_name="/chat")
    with streamlm.open(
        store, chatty, device="cpu", settings=CHAT_WINDOWS, readonly=True
    ) as session:
        assert [(span.start, span.stop) for span in session.recalled] == [
            (best["start"], best["stop"])
        ]


def test_only_the_named_functions_are_public(client: Any) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {f"/{name}" for name in TOOLS}


def test_an_mcp_client_lists_and_calls_tools(server: DemoServer) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> tuple[set[str], str]:
        async with (
            streamable_http_client(f"{server.address}gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            described = {tool.name.removeprefix("streamlm_") for tool in tools if tool.description}
            name = next(tool.name for tool in tools if tool.name.endswith("read_text"))
            called = await session.call_tool(name, {"session": "mcp", "text": "Of whales. "})
            return described, str(called.content)

    tools, output = asyncio.run(talk())
    assert tools == TOOLS
    assert "mcp is saved at token" in output
