"""The command line and streams that live for days: saves by time, growing files, standard input."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memory_store import DirectoryStore, StoreError
from tests.support.command_line import COMMAND, ROOT, CommandLine, interrupt_after, log, refuses

PATIENCE = 120.0  # seconds; a limit for what takes a second or two
PATH = Path("sessions/new.zarr")


@contextmanager
def running(*words: object, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in a process of its own, killed at the end if it still runs."""
    command = [*COMMAND, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def interruptible() -> None:
    """In a new process: let SIGINT interrupt it, which jobs in the background of a shell ignore."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_by(process: "subprocess.Popen[bytes]", least: int, model: Path) -> int:
    """Wait until the session on the disk has read so many tokens."""
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
        try:
            head = DirectoryStore.open(PATH).head("main")
        except StoreError:  # not created yet
            continue
        if head is not None and head.position >= least:
            return head.position


def test_a_slow_stream_survives_a_kill(kept: CommandLine) -> None:
    words = ("feed", "-", "--session", "new", "--model", kept.model, "--save-every", "0.01s")
    with running(*words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"Call me Ishmael. Some years ago, ")
        process.stdin.flush()
        read = read_by(process, 1, kept.model)
        process.send_signal(signal.SIGKILL)
    text = kept.works("sessions", "text", "new", "--model", kept.model).out
    assert text.startswith("Call me Ishmael.") and len(log(PATH)) == read
    # It says what it has, also after a kill, and goes on behind it.
    whole = b"Call me Ishmael. Some years ago, never mind how long. "
    again = kept("feed", "-", "--session", "new", "--stdin-skip", 33, stdin=whole)
    assert again.status == 0 and "has 33 bytes" not in again.err
    text = kept.works("sessions", "text", "new", "--model", kept.model).out
    assert text.count("Ishmael") == 1 and "never mind how" in text


def test_an_interrupted_standard_input_says_what_was_kept(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch, small_blocks: int
) -> None:
    given = Path("text.txt").read_bytes()
    whole = kept.works("feed", "-", "--session", "whole", "--json", stdin=given).json
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.runtime.text_stream.TextStream.read_ahead", 3)
        result = kept("feed", "-", "--session", "new", stdin=given)
    assert result.status == 130
    n = int(result.err.split("--stdin-skip ")[1].split()[0])
    assert 0 < n < len(given) and "the same command" not in result.err
    warned = kept("feed", "-", "--session", "new", "--stdin-skip", len(given) + 1, stdin=given)
    assert warned.status == 1 and "bytes to skip, but" in warned.err
    report = kept.works(
        "feed", "-", "--session", "new", "--stdin-skip", n, "--json", stdin=given
    ).json
    assert report["position"] == whole["position"]
    assert log(PATH) == log(Path("sessions/whole.zarr"))


def test_standard_input_that_was_read_already_is_noted(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch, small_blocks: int
) -> None:
    given = Path("text.txt").read_bytes()
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.runtime.text_stream.TextStream.read_ahead", 3)
        kept("feed", "-", "--session", "new", stdin=given)
    result = kept.works("feed", "-", "--session", "new", stdin=given)
    assert "bytes of standard input already; --stdin-skip " in result.err


def test_follow(kept: CommandLine) -> None:
    Path("app.log").write_text("Call me Ishmael.\n", encoding="utf-8")
    words = ("feed", "app.log", "--follow", "--session", "new", "--model", kept.model)
    with running(*words, "--save-every", "0.01s", preexec_fn=interruptible) as process:
        read = 0
        for line in ("Some years ago.\n", "Never mind how long.\n"):
            with Path("app.log").open("a", encoding="utf-8") as file:
                file.write(line)
            read = read_by(process, read + 5, kept.model)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert b"interrupted; saved up to token" in err
    assert b"the same command resumes there" in err
    kept.works("feed", "app.log", "--once", "--session", "new")
    text = kept.works("sessions", "text", "new", "--model", kept.model, "--json").json["text"]
    assert Path("app.log").read_text().startswith(text) and text.count("Ishmael") == 1
    result = kept("feed", "sessions", "--follow", "--session", "s")
    assert result.status == 1 and "--follow with sessions; allowed: with one file" in result.err


def test_once(kept: CommandLine) -> None:
    Path("folder").mkdir()
    for name in "abc":
        Path(f"folder/{name}.txt").write_text(f"Text {name} of the whale. ", encoding="utf-8")
    words = ("feed", "folder", "--separator", r"\n--\n", "--once", "--session", "new", "--json")
    first = kept.works(*words).json
    again = kept.works(*words).json
    assert again["position"] == first["position"] and again["tokens"] == 0
    assert again["skipped_bytes"] > 0 and again["snapshot"] == first["snapshot"]
    Path("folder/d.txt").write_text("Text d of the whale. ", encoding="utf-8")
    kept.works(*words)
    text = kept.works("sessions", "text", "new", "--model", kept.model).out
    assert text.count("Text a") == 1 and text.count("--") == 3
    result = kept("feed", "-", "--once", "--session", "s", stdin=b"text")
    assert result.status == 1 and "--once with -; allowed: with files" in result.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x"], "--save-every 'x'; allowed: tokens, or 30s"),
        (["30 s"], "--save-every '30 s'; allowed"),
        (["0"], "save_every = 0; allowed: at least 1"),
        (["5", "6"], "--save-every 6: given twice"),
        (["5s", "6m"], "--save-every 6m: given twice"),
    ],
)
def test_save_every(kept: CommandLine, given: list[str], message: str) -> None:
    options = [word for each in given for word in ("--save-every", each)]
    refuses(kept, message, "feed", "text.txt", "--session", "new", *options)
    kept.works("feed", "text.txt", "--session", "s", "--save-every", "2m", "--save-every", "500")


def test_seeds_are_random_and_reported(kept: CommandLine) -> None:
    options = ("generate", "--session", "s", "--no-keep", "--max-tokens", 12)
    found = [kept.works(*options, "--json").json for _ in range(3)]
    assert len({each["text"] for each in found}) > 1
    seed = found[0]["seed"]
    assert kept.works(*options, "--json", "--seed", seed).json["text"] == found[0]["text"]
    told = kept.works(*options).err
    assert told.startswith("--seed ") and told.endswith(" repeats this\n")
    assert kept.works(*options, "--temperature", 0).err == ""
    assert kept.works(*options, "--temperature", 0, "--json").json["seed"] is None


def test_prompts_from_elsewhere(kept: CommandLine) -> None:
    options = ("generate", "--max-tokens", 5, "--seed", 3)
    prompt = "Call me Ishmael — and"
    Path("prompt.txt").write_text(prompt + "\n", encoding="utf-8")
    wanted = kept.works(*options, "--prompt", prompt).out
    assert kept.works(*options, "--prompt", "-", stdin=prompt.encode() + b"\n").out == wanted
    assert kept.works(*options, "--prompt-file", "prompt.txt").out == wanted
    found = kept.works(*options, "--prompt", prompt, "--json").json
    assert found["tokens"] == 5 and found["prompt_tokens"] > 5
    assert found["position"] == found["tokens"] + found["prompt_tokens"]
    Path("bad.txt").write_bytes(b"caf\xe9")
    for words, stdin, message in (
        (["--prompt-file", "bad.txt"], b"", "bad.txt is not UTF-8 text"),
        (["--prompt-file", "none.txt"], b"", "no file 'none.txt'"),
        (["--prompt-file", "prompt.txt", "--prompt", "x"], b"", "allowed: one of them"),
        (["--prompt", "-"], b"caf\xe9", "standard input is not UTF-8 text: .* at byte 3"),
        (["--prompt", "-"], None, "standard input is closed"),
    ):
        refuses(kept, message, *options, *words, stdin=stdin)


def test_text_of_a_session(kept: CommandLine) -> None:
    model = ("--model", kept.model)
    whole = kept.works("sessions", "text", "s", *model, "--json").json
    assert whole["from"] == 0 and whole["to"] == len(log(Path("sessions/s.zarr")))
    assert kept.works("sessions", "text", "s", *model).out == whole["text"] + "\n"
    parts = [
        kept.works("sessions", "text", "s", *model, *words, "--json").json["text"]
        for words in (("--to", 9), ("--from", 9))
    ]
    assert len("".join(parts)) >= len(whole["text"])
    refuses(kept, "--from 9 --to 4; allowed: a part", "sessions", "text", "s", "--from", 9, "--to",
            4)  # fmt: skip
    refuses(kept, "no branch 'none'", "sessions", "text", "s@none")


def test_a_branch_is_deleted(kept: CommandLine) -> None:
    kept.works("feed", "text.txt", "--session", "s@side")
    before = log(Path("sessions/s.zarr"))
    found = kept.works("sessions", "delete", "s@side", "--yes", "--json").json
    assert found["deleted"] and found["snapshots"] > 0
    assert DirectoryStore.open("sessions/s.zarr").branches() == ["main"]
    assert log(Path("sessions/s.zarr")) == before
    kept.works("sessions", "verify", "s")
    refuses(kept, "has no branch 'side'", "sessions", "delete", "s@side", "--yes")
    refuses(kept, "allowed: another branch, or the session", "sessions", "delete", "s@main",
            "--yes")  # fmt: skip


def test_an_unknown_text_is_noted(kept: CommandLine) -> None:
    Path("jp.txt").write_text("吾輩は猫である。名前はまだ無い。\n" * 4, encoding="utf-8")
    for command in (("feed", "jp.txt", "--session", "new"), ("score", "jp.txt")):
        told = kept.works(*command).err
        assert "warning: this text is nothing that the model" in told
        assert "% of its bytes are of characters that the vocabulary lacks" in told
    assert kept.works("feed", "text.txt", "--session", "s").err == ""


def test_a_damaged_session_names_the_ways_out(kept: CommandLine) -> None:
    head = DirectoryStore.open("sessions/s.zarr").head("main")
    assert head is not None
    newest = Path("sessions/s.zarr/commits", head.commit.name)
    newest.write_bytes(newest.read_bytes()[:100])
    result = kept("feed", "text.txt", "--session", "s")
    assert result.status == 1
    assert "`streamlm sessions recover NAME`" in result.err
    assert "`streamlm sessions import FILE NAME`" in result.err


def test_a_second_file_of_eval_is_explained(kept: CommandLine) -> None:
    result = kept("eval", str(kept.model), "--data", "text.txt", "b.txt")
    assert result.status == 1
    assert "b.txt behind --data text.txt; allowed: --data b.txt for further files" in result.err


def test_rewind_to_and_by(kept: CommandLine) -> None:
    at = len(log(Path("sessions/s.zarr")))
    assert json.loads(kept.works("sessions", "rewind", "s", "--by", 9, "--json").out) == {
        "name": "s", "from": at, "position": at - 9,
    }  # fmt: skip
    assert kept.works("sessions", "rewind", "s", "--to", 9, "--json").json["position"] == 9
    for words in (("--to", 1, "--by", 1), ()):
        refuses(kept, "allowed: one of --to, --by, --snapshot and --time", "sessions", "rewind",
                "s", *words)  # fmt: skip
