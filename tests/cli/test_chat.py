"""`streamlm chat`: by pipe, by option, and in a terminal."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.sessions.session import Session
from tests.support.chats import chat_folder
from tests.support.command_line import CommandLine, interrupt_after, refuses
from tests.support.terminal import Terminal


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat"))


def transcript(talker: Path, name: str = "t") -> list[tuple[str, str]]:
    """Roles and contents of the messages of a session; of replies the roles alone."""
    with streamlm.open(f"sessions/{name}.zarr", talker, device="cpu", readonly=True) as session:
        return [
            (one["role"], "" if one["role"] == "assistant" else one["content"])
            for one in session.transcript()
        ]


def reply_of(talker: Path, message: str, **options: Any) -> str:
    return "".join(Session(streamlm.load(talker, device="cpu")).reply(message, **options))


def test_a_message_by_pipe(cli: CommandLine, talker: Path) -> None:
    message = "Who are you?\nAnd why?\n"
    options = ("--model", talker, "--max-tokens", 8, "--seed", 3, "--temperature", 1)
    found = cli.works("chat", *options, stdin=message.encode())
    wanted = reply_of(talker, message[:-1], max_tokens=8, seed=3, temperature=1.0)
    assert found.out.rstrip("\n") == wanted.rstrip("\n") and found.out.endswith("\n")
    assert found.err == "" and not Path("sessions").exists()


def test_prompts_and_a_session_that_is_resumed(cli: CommandLine, talker: Path) -> None:
    options = ("--session", "t", "--model", talker, "--max-tokens", 4, "--seed", 1)
    first = cli.works("chat", "--prompt", "One", "--prompt", "Two", "--system", "Be.", *options)
    assert first.out
    found = cli.works("chat", "--prompt", "Three", *options, "--json").json
    assert found.keys() == {"reply", "tokens", "position", "seconds", "recalled"}
    assert transcript(talker) == [
        *(("system", "Be."), ("user", "One"), ("assistant", "")),
        *(("user", "Two"), ("assistant", ""), ("user", "Three"), ("assistant", "")),
    ]
    Path("text.txt").write_text("It was the whale. ", encoding="utf-8")
    cli.works("feed", "text.txt", "--session", "t", "--model", talker)
    cli.works("chat", "--prompt", "Four", *options)
    assert transcript(talker)[-3:] == [
        ("text", "It was the whale."),
        ("user", "Four"),
        ("assistant", ""),
    ]
    shown = cli.works("sessions", "show", "t", "--json").json
    assert shown["position"] > found["position"]


def test_refusals(cli: CommandLine, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ("--session", "new")
    monkeypatch.setenv("STREAMLM_HOME", "nothing")
    refuses(cli, "standard input is empty; allowed: a message there, or", "chat", *new)
    refuses(cli, "standard input is empty", "chat", *new, stdin=None)
    refuses(
        cli, "no model that chats is here; streamlm models get smollm2", "chat", *new, stdin=b"a"
    )
    bundled = ("chat", "--prompt", "a", *new, "--model", "books")
    refuses(cli, "books has no chat template: .*models that chat: smollm2", *bundled)
    given = ("--prompt", "a", *new, "--model", talker)
    refuses(cli, "temperature = -1.0; allowed", "chat", *given, "--temperature", -1)
    refuses(cli, "the message is empty", "chat", "--prompt", " ", *new, "--model", talker)
    cli.works("chat", "--prompt", "a", "--session", "t", "--model", talker, "--max-tokens", 1)
    other = ("--session", "t", "--model", talker, "--system", "Be.")
    refuses(cli, "begun with another system prompt", "chat", "--prompt", "a", *other)


def test_an_interrupted_reply_is_kept(
    cli: CommandLine, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--prompt", "Who?", "--session", "t", "--model", talker, "--max-tokens", 60)
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.runtime.text_stream.TextStream.reply_token", 3)
        result = cli("chat", *options)
    assert result.status == 130
    assert result.err.endswith("interrupted; session t includes the talk so far\n")
    assert transcript(talker) == [
        ("system", "Be brief."),
        ("user", "Who?"),
        ("assistant", ""),
    ]


@pytest.fixture
def terminal(cli: CommandLine, talker: Path, tmp_path: Path) -> Iterator[type[Terminal] | Any]:
    opened: list[Terminal] = []

    def open_(*options: object) -> Terminal:
        command = ("chat", "--model", talker, "--device", "cpu", *options)
        opened.append(Terminal(*command, environment={"STREAMLM_HOME": str(tmp_path / "home")}))
        return opened[-1]

    yield open_
    for each in opened:
        each.kill()


@pytest.mark.slow
def test_a_talk_in_a_terminal(terminal: Any, talker: Path) -> None:
    """Ctrl-C stops a reply and no more, pasted lines are one message, Ctrl-D leaves and saves."""
    Path("text.txt").write_text("It was the whale. ", encoding="utf-8")
    long = ("--session", "t", "--temperature", "3", "--max-tokens", "100000", "--seed", "1")
    first = terminal(*long)
    assert "session t at token 0" in first.wait_for("session t at token .*Ctrl-D leaves")
    first.wait_for("> ")
    first.type("\x1b[200~One\ntwo\x1b[201~\n")
    first.wait_for(r"(?s)two.*\n.{20}")
    first.type("\x03")
    first.wait_for("stopped; the talk goes on")
    first.wait_for("> ")
    first.interrupt("Ctrl-D leaves")
    first.type("/read nothing.txt\n")
    first.wait_for("error: .*nothing.txt")
    first.type("/read text.txt\n")
    first.wait_for(r"read \d+ tokens")
    first.type("and \\\n")
    first.wait_for("… ")
    first.type("so on\n")
    first.wait_for(r"(?s)so on.*\n.{20}")
    first.type("\x03")
    first.wait_for("stopped; the talk goes on")
    first.wait_for("> ")
    first.type("\n\x04")
    first.wait_for("saved: streamlm chat --session t goes on")
    assert first.end() == 0 and "Traceback" not in first.text
    wanted = [
        *(("system", "Be brief."), ("user", "One\ntwo"), ("assistant", "")),
        *(("text", "It was the whale."), ("user", "and \nso on"), ("assistant", "")),
    ]
    assert transcript(talker) == wanted

    again = terminal(*long)
    assert "user: and so on" in again.wait_for("(?s)session t at token.*assistant: ")
    again.wait_for("> ")
    again.type("Why?\n")
    again.wait_for(r"(?s)Why\?.*\n.{20}")
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 128 + signal.SIGTERM and "Traceback" not in again.text
    assert transcript(talker) == [*wanted, ("user", "Why?"), ("assistant", "")]


@pytest.mark.slow
def test_a_talk_without_a_session(terminal: Any) -> None:
    talk = terminal("--max-tokens", "2", "--seed", "4")
    talk.wait_for(r"chat\d+\. Ctrl-C stops a reply")
    talk.wait_for("> ")
    talk.type("Hello\n")
    talk.wait_for("(?s)Hello\n.*> ")
    talk.type("\x04")
    talk.wait_for("nothing was saved")
    assert talk.end() == 0 and not Path("sessions").exists()
    refused = terminal("--json")
    refused.wait_for("error: --json in a terminal; allowed: with --prompt")
    assert refused.end() == 1
