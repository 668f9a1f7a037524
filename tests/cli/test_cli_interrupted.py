"""The command line in a terminal or a pipe, interrupted or ended by signals."""

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlm
from memory_store import DirectoryStore
from tests.support.command_line import (
    BOOKS,
    COMMAND,
    READ_KEYS,
    ROOT,
    CommandLine,
    interrupt_after,
    left,
    log,
    write_recipe,
)


@pytest.mark.parametrize(
    ("command", "where", "message"),
    [
        (
            "score text.txt --session s",
            "streamlm.runtime.text_stream.TextStream.read_ahead",
            "nothing was chang",
        ),
        (
            "eval MODEL --data text.txt",
            "streamlm.training.evaluate.evaluate",
            "nothing was changed",
        ),
        (
            "generate --session s --no-keep",
            "streamlm.runtime.text_stream.TextStream.generate_token",
            "nothing was saved",
        ),
        ("feed text.txt --session new", "streamlm.cli.feed.open_named", "nothing was read"),
        (
            "feed text.txt --session new",
            "streamlm.runtime.text_stream.TextStream.read_ahead",
            "nothing was read",
        ),
        (
            "train --recipe recipe.toml",
            "streamlm.training.trainer.Trainer._optimise",
            "nothing was saved yet",
        ),
    ],
)
def test_an_interruption_before_any_save(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str, where: str, message: str
) -> None:
    write_recipe()
    before = left()
    interrupt_after(monkeypatch, where, 0)
    words = [str(kept.model) if word == "MODEL" else word for word in command.split()]
    result = kept(*words)
    assert result.status == 130 and result.out.strip() == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("interrupted; ") and message in last
    assert left() == before


def test_an_interrupted_generate_keeps_its_tokens(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--session", "s", "--seed", 5, "--max-tokens", 9)
    whole = kept.works("generate", *options, "--no-keep").out
    start = len(log(Path("sessions/s.zarr")))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.runtime.text_stream.TextStream.generate_token", 4)
        result = kept("generate", *options)
    assert (
        result.status == 130 and result.err == "interrupted; session s includes the text so far\n"
    )
    assert result.out.endswith("\n") and whole.startswith(result.out[:-1])
    assert start + 4 <= len(log(Path("sessions/s.zarr"))) < start + 9


@pytest.fixture(scope="module")
def slow_model(tiny_folder: Callable[..., Path]) -> Path:
    """Takes seconds to read half of the sample book, with several saves."""
    return tiny_folder(segment_len=128, memory_len=128)


def start(*arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    """The command line in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        environment.pop(name, None)
    environment.pop("PYTHONUNBUFFERED", None)  # it would hide errors when flushing on exit
    environment["TERM"] = "xterm-256color"
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment,
        # A background job of a script inherits an ignored SIGINT; a terminal's does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def position(path: Path) -> int:
    """The saved position of a session; 0 if there is none."""
    if not (path / "refs" / "main").exists():
        return 0
    head = DirectoryStore.open(path).head("main")
    return head.position if head else 0


def wait_until(process: "subprocess.Popen[bytes]", done: Callable[[], bool]) -> None:
    while not done():
        assert process.poll() is None, "the process ended before it could be interrupted"
        time.sleep(0.02)


@pytest.mark.slow
def test_feed_resumes_after_signals(cli: CommandLine, slow_model: Path) -> None:
    """In a terminal with a bar, until Ctrl-C; then until kill -9; then to the end."""
    whole = (BOOKS / "beyond-the-city.txt").read_text("utf-8")
    book, path = Path("beyond-the-city.txt"), Path("sessions/a.zarr")
    book.write_text(whole[: len(whole) // 2], "utf-8")
    feed = ("feed", book, "--session", "a", "--model", slow_model, "--save-every", 4000)
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, 100))
    with start(*feed, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""

        def saved_once() -> bool:
            nonlocal shown
            while select.select([screen], [], [], 0)[0]:
                shown += os.read(screen, 1 << 16)
            return position(path) > 0

        wait_until(process, saved_once)
        process.send_signal(signal.SIGINT)
        shown += read_to_end(screen)
    assert process.returncode == 130
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"reading beyond-the-city\.txt ━+.* \d+% [\d,]+ tokens/s", text)
    assert "\x1b[" in shown.decode() and "Traceback" not in text
    first = position(path)
    assert f"interrupted; saved up to token {first:,}; the same command resumes there" in text

    with start(*feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(process, lambda: position(path) > first)
        process.kill()
        out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL and out == b"" and err == b""  # no bar in a pipe
    second = position(path)

    report = cli.works(*feed, "--json").json
    assert report.keys() == READ_KEYS | {"state_bytes", "held_bytes", "session", "path", "snapshot"}
    assert report["skipped_bytes"] > 0 and report["tokens"] == report["position"] - second
    size = report["skipped_bytes"] + report["bytes"] + report["held_bytes"]
    assert abs(size - book.stat().st_size) <= 64  # the words held back at the interruptions
    # Nothing is missing or read twice, except for the held-back word at the end.
    ids = streamlm.load(slow_model, device="cpu").tokenizer.encode(book.read_text("utf-8"))
    found = log(path)
    assert found == ids.tolist()[: len(found)] and len(found) >= len(ids) - 8


def read_to_end(screen: int) -> bytes:
    """Read the remaining output of a terminal."""
    found = b""
    while True:
        try:
            block = os.read(screen, 1 << 16)
        except OSError:  # on Linux: no process has the terminal open
            block = b""
        if not block:
            os.close(screen)
            return found
        found += block


def test_a_pipe_shows_text_and_no_bar(cli: CommandLine, model: Path, prepared: Path) -> None:
    text = (prepared / "text.txt").read_bytes()
    pipe = subprocess.PIPE
    with start(
        *("feed", "-", "--session", "p", "--model", model), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        out, err = process.communicate(text)
    assert process.returncode == 0 and err == b""
    assert b"\x1b" not in out and out.startswith(b"tokens  ")
    cli.works("feed", prepared / "text.txt", "--session", "q")
    assert log(Path("sessions/p.zarr")) == log(Path("sessions/q.zarr"))


def test_a_closed_pipe_ends_the_command(cli: CommandLine, model: Path) -> None:
    """As in `streamlm generate | head -c 1`, and with --json, which is written at once."""
    options = ("--model", model, "--max-tokens", 5000, "--seed", 1)
    with start("generate", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.read(1)
        process.stdout.close()
        assert process.stderr and process.stderr.read() == b""
    assert process.returncode == 1
    reader, writer = os.pipe()
    os.close(reader)
    with start("sessions", "list", "--json", stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr and process.stderr.read() == b""
    assert process.returncode == 1
