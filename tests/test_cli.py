"""The command line as a user meets it: what it prints, where, with which status, and what stays."""

import io
import json
import lzma
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoint import save_checkpoint
from streamlm.cli import main
from tests.stores import files, members, where
from tokenizer import Tokenizer, train

ROOT = Path(__file__).resolve().parents[1]
BOOKS = ROOT / "streamlm" / "assets" / "books"
COMMAND = [sys.executable, "-m", "streamlm"]
NEEDS_MODEL = {"feed", "generate", "score", "rewind"}
READ_KEYS = {
    *("tokens", "bytes", "nats", "bits_per_byte", "seconds", "tokens_per_second", "position"),
    "skipped_bytes",
}


@dataclass(frozen=True)
class Result:
    """What a command left: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)


class CommandLine:
    """Runs commands in this process. Those that need a model get the one of the test."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        self._monkeypatch, self._capsys, self.model = monkeypatch, capsys, model

    def __call__(self, *arguments: object, stdin: bytes | None = b"") -> Result:
        argv = list(map(str, arguments))
        if NEEDS_MODEL & set(argv[:2]) and "--model" not in argv:
            argv += ["--model", str(self.model)]
        given = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["streamlm", *argv])
            patch.setattr(sys, "stdin", given)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        captured = self._capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    def works(self, *arguments: object, stdin: bytes | None = b"") -> Result:
        result = self(*arguments, stdin=stdin)
        assert result.status == 0, result.err
        return result


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder()


@pytest.fixture
def cli(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[CommandLine]:
    """The command line in an empty folder, with a plain environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield CommandLine(monkeypatch, capsys, model)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, model: Path, prose: Callable[..., str]
) -> Path:
    """A folder with a session `s`, its branch `s@side`, and a text.txt that it has not read."""
    folder = tmp_path_factory.mktemp("prepared")
    with streamlm.open(folder / "sessions" / "s.zarr", streamlm.load(model, device="cpu")) as s:
        s.feed([prose(300)])
        s.fork("side").close()
    (folder / "text.txt").write_text(prose(200, seed=1), encoding="utf-8")
    return folder


@pytest.fixture
def kept(cli: CommandLine, prepared: Path, tmp_path: Path) -> CommandLine:
    """The command line in a copy of the prepared folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return cli


def left(folder: Path = Path("sessions")) -> dict[str, bytes]:
    """Everything in a store folder but the locks, which every writer writes to."""
    return {name: data for name, data in files(folder).items() if not name.endswith("/.lock")}


def refuses(
    cli: CommandLine, message: str, *arguments: object, stdin: bytes | None = b"", status: int = 1
) -> None:
    """The command ends with a message and `status`, and no session is begun or changed."""
    before = left()
    result = cli(*arguments, stdin=stdin)
    assert result.status == status, result
    assert result.out == ""
    assert re.search(message, result.err), result.err
    if status == 1:
        assert re.fullmatch(r"(encoding .*\n)*error: .*\n", result.err), result.err
    assert left() == before
    assert not Path("sessions/new.zarr").exists()


# -- what works -------------------------------------------------------------------------------


RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["text.txt"]
valid = ["text.txt"]

[model]
n_layers = 1
d_model = 16
n_heads = 2
head_dim = 8
d_ff = 16
segment_len = 16
memory_len = 16
compressed_len = 8

[train]
steps = 4
batch_size = 2
checkpoint_steps = 2
eval_steps = 2
eval_tokens = 100
"""


def write_recipe(name: str = "recipe.toml", **replaced: str) -> None:
    """A small recipe, with some of its lines replaced: `steps="steps = 0"`."""
    text = RECIPE.format(tokenizer=BOOKS / "tokenizer.model")
    for key, line in replaced.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert found == 1
    Path(name).write_text(text, encoding="utf-8")


def test_from_a_recipe_to_generated_text(kept: CommandLine) -> None:
    write_recipe()
    trained = kept.works("train", "--recipe", "recipe.toml", "--out", "run")
    assert trained.out == "run/model\n"
    assert re.search(r"(?m)^step 4: .*valid \d\.\d{4} bits per byte", trained.err)
    assert "\x1b" not in trained.err and "━" not in trained.err
    assert (
        "left" in trained.err.split("step 4:")[0] and "left" not in trained.err.split("step 4:")[1]
    )

    found = kept.works("eval", "run/model", "--data", "text.txt", "--json").json
    assert found.keys() == {
        *("bits_per_byte", "word_perplexity", "nats", "tokens", "bytes", "words"),
        "loss_by_position",
    }
    assert found["bytes"] == Path("text.txt").stat().st_size
    assert sum(n for _, _, n in found["loss_by_position"]) == found["tokens"]
    shown = kept.works("eval", "run/model", "--data", "text.txt").out
    assert f"bits per byte    {found['bits_per_byte']:.4f}\n" in shown

    model = ("--model", "run/model")
    read = kept.works("feed", "text.txt", "--session", "x", *model, "--json").json
    # One session reads the text as `eval` does, but for the words still held back.
    assert read["bytes"] + read["held_bytes"] == found["bytes"]
    scored = kept.works("score", "text.txt", "--session", "x", *model, "--json").json
    assert scored["tokens"] == found["tokens"] and scored["position"] >= read["position"]
    written = kept.works("generate", "--session", "x", *model, "--max-tokens", 5, "--json").json
    assert written["position"] > read["position"]


def test_resumed_training_ends_with_the_same_weights(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe()
    kept.works("train", "--recipe", "recipe.toml", "--out", "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.train.Trainer._optimise", 3)
        stopped = kept("train", "--recipe", "recipe.toml", "--out", "parts")
    assert stopped.status == 130
    assert stopped.err.endswith("--resume goes on from the last of the saves, in parts/last\n")
    again = kept("train", "--recipe", "recipe.toml", "--out", "parts")
    assert again.status == 1
    assert again.err == "error: parts holds a run already; allowed: --resume, or another --out\n"
    resumed = kept.works("train", "--recipe", "recipe.toml", "--out", "parts", "--resume")
    assert "from step 2 to 4" in resumed.err
    weights = [Path(run, "model", "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_feed_and_score_say_what_they_did(kept: CommandLine) -> None:
    Path("moby[dick] :whale:.txt").write_bytes(Path("text.txt").read_bytes())
    shutil.copytree("sessions", "[bold] :whale:")
    store = ("--store", "[bold] :whale:")
    fed = kept.works("feed", "moby[dick] :whale:.txt", "text.txt", "--session", "new", *store)
    rows = dict(re.split(r"  +", line) for line in fed.out.splitlines())
    assert fed.err == ""
    assert list(rows)[:4] == ["tokens", "bytes", "bits per byte", "tokens/s"]
    size = 2 * Path("text.txt").stat().st_size
    held = int(rows.get("held back", "0").split()[0])
    assert int(rows["bytes"].replace(",", "")) + held == size
    assert rows["position"] == f"{rows['tokens']} tokens"
    assert rows["session"] == str(Path("[bold] :whale:/new.zarr").resolve())
    before = left(Path("[bold] :whale:"))
    scored = kept.works("score", "text.txt", "--session", "new", *store)
    assert re.search(r"(?m)^given +[\d,]+ tokens read before$", scored.out)
    for line in (fed.out + scored.out).splitlines():
        assert line == line.rstrip()
    assert left(Path("[bold] :whale:")) == before
    alone = kept.works("score", "text.txt", "--json").json
    assert alone.keys() == READ_KEYS and alone["position"] == 0


def test_standard_input_and_replaced_bytes(kept: CommandLine) -> None:
    text = Path("text.txt").read_bytes()
    kept.works("feed", "text.txt", "--session", "file")
    kept.works("feed", "-", "--session", "stdin", stdin=text)
    Path("a.txt").write_bytes(text[:501])
    kept.works("feed", "a.txt", "-", "--session", "both", "--errors", "replace", stdin=text[501:])
    logs = [log(Path(f"sessions/{name}.zarr")) for name in ("file", "stdin", "both")]
    assert logs[0] == logs[1] == logs[2]
    Path("latin.txt").write_bytes(b"caf\xe9 \0 noir " * 20)
    read = kept.works("feed", "latin.txt", "--session", "latin", "--errors", "replace", "--json")
    assert read.json["tokens"] > 0


def test_generate_writes_on(kept: CommandLine) -> None:
    before = left()
    options = ("--max-tokens", 12, "--seed", 3)
    first = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", "--no-keep", *options)
    assert first.err == "" and first.out.startswith("Ahoy ") and first.out.endswith("\n")
    again = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", "--no-keep", *options)
    assert again.out == first.out
    assert left() == before
    held = kept.works("generate", "--session", "s", "--prompt", "Ahoy ", *options, "--json").json
    assert held.keys() == {"text", "tokens", "position", "seconds", "tokens_per_second"}
    assert f"Ahoy {held['text']}\n" == first.out
    assert left() != before
    shown = kept.works("sessions", "show", "s", "--json").json
    assert shown["position"] == held["position"]
    shutil.rmtree("sessions")
    kept.works("generate", *options)  # a session of its own, in memory
    assert not Path("sessions").exists()


def test_generate_ends_at_stop(cli: CommandLine, tiny_folder: Callable[..., Path]) -> None:
    likes_newlines = tiny_folder(likes="\n")
    options = ("--model", likes_newlines, "--temperature", 0, "--max-tokens", 9, "--json")
    assert "\n" in cli.works("generate", *options).json["text"]
    assert "\n" not in cli.works("generate", *options, "--stop", r"\n").json["text"]


def test_sessions(kept: CommandLine) -> None:
    empty = kept.works("sessions", "list", "--store", "elsewhere").out
    assert empty == "no sessions in elsewhere; begin one: streamlm feed FILE --session NAME\n"
    both = kept.works("sessions", "list", "--json").json
    assert both.keys() == {"sessions", "unreadable"} and both["unreadable"] == {}
    assert [row["name"] for row in both["sessions"]] == ["s", "s@side"]
    for row in both["sessions"]:
        assert row.keys() == {"name", "position", "saved", "bytes"}
    shown = kept.works("sessions", "show", "s", "--json").json
    assert shown.keys() == {
        *("name", "path", "bytes", "branches", "pins", "retention", "position", "snapshots"),
    }
    for snapshot in shown["snapshots"]:
        assert snapshot.keys() == {
            *("snapshot", "position", "saved", "commit", "bytes", "kept"),
        }
    start = shown["position"]

    forked = kept.works("sessions", "fork", "s", "draft", "--json").json
    assert forked == {"name": "s@draft", "position": start}
    assert kept.works("sessions", "fork", "s@draft", "b").out == f"s@b begins at token {start}\n"
    kept.works("feed", "text.txt", "--session", "s@draft")
    assert kept.works("sessions", "show", "s", "--json").json == {
        **shown,
        "branches": ["b", "draft", "main", "side"],
        "bytes": DirectoryStore.open("sessions/s.zarr").size(),
    }

    back = kept.works("sessions", "rewind", "s", "--tokens", 7, "--json").json
    assert back == {"name": "s", "from": start, "position": 7}
    undone = kept.works("sessions", "rewind", "s", "--snapshot", shown["snapshots"][-1]["snapshot"])
    assert undone.out == f"s: from token 7 to {start}\n"

    for arguments in (["list"], ["show", "s@draft"]):
        text = kept.works("sessions", *arguments)
        assert text.err == "" and "\x1b" not in text.out
        assert all(line == line.rstrip() for line in text.out.splitlines())
    assert re.search(rf"(?m)^s +{start} +\S+ \w+ +\d{{4}}-", kept.works("sessions", "list").out)


def test_rewinding_to_a_time(kept: CommandLine) -> None:
    snapshots = kept.works("sessions", "show", "s", "--json").json["snapshots"]
    end = snapshots[-1]["position"]
    begin = datetime.fromtimestamp(snapshots[0]["saved"] + 0.0005)  # of the empty beginning
    for then in (begin.isoformat(), begin.isoformat(sep=" "), f"{begin.astimezone()}"):
        back = kept.works("sessions", "rewind", "s", "--time", then, "--json").json
        assert back == {"name": "s", "from": end, "position": 0}
        kept.works("sessions", "rewind", "s", "--snapshot", snapshots[-1]["snapshot"])
    assert kept.works("sessions", "rewind", "s", "--time", "0s ago", "--json").json["from"] == end
    for then, message in (
        ("99999999d", "time '99999999d'; allowed: 2026-03-01, "),
        ("soon", "time 'soon'; allowed: 2026-03-01, "),
        ("2h", r"allowed: \d{4}-\d\d-\d\dT.* or later"),
    ):
        refuses(kept, message, "sessions", "rewind", "s", "--time", then)


def test_a_long_history_and_what_is_kept_of_it(kept: CommandLine, tmp_path: Path) -> None:
    for _ in range(11):
        for seq in (0, 1):
            kept.works("sessions", "rewind", "s", "--snapshot", seq)
    facts = kept.works("sessions", "show", "s", "--json").json
    n, sizes = len(facts["snapshots"]), [each["bytes"] for each in facts["snapshots"]]
    assert n > 20 and sizes[0] < 1000 < sizes[1] and facts["retention"]["last"] == 32
    shown = kept.works("sessions", "show", "s").out
    assert f"the newest 20 of {n} snapshots; --all lists the others" in shown
    assert "keeps the newest 32 states, and all tokens; thins out the older ones by age" in shown
    every = kept.works("sessions", "show", "s", "--all").out
    assert len(every.splitlines()) == len(shown.splitlines()) + n - 21
    kept.works("feed", "text.txt", "--session", "new", "--keep-all")
    assert "keeps all states" in kept.works("sessions", "show", "new").out
    kept.works("sessions", "gc", "s", "--last", 1)
    text = kept.works("sessions", "show", "s").out
    assert "tokens only" not in text  # the beginning, and what the head and a branch stand on
    name = DirectoryStore.open("sessions/s.zarr").refs("main")[1].commit.name
    (tmp_path / "sessions" / "s.zarr" / "commits" / name).write_bytes(b"{}")
    assert "damaged" in kept.works("sessions", "show", "s").out


def test_show_memory(kept: CommandLine, model: Path, tmp_path: Path) -> None:
    options = ["--model", model, "--plot", "memory.png"]
    text = kept.works("sessions", "show", "s", "--memory", *options).out
    lines = text.splitlines()
    assert re.search(r"tokens ago +kind +slots +bytes a token +lost +attention +text", text)
    assert "compressed" in text and all(len(line) <= 80 for line in lines[-10:-2])
    slots = [line.split() for line in lines if re.match(r" *[\d,]+ – ", line)]
    assert sum(int(words[4]) for words in slots) == int(re.findall(r"([\d,]+) slots", text)[0])
    assert slots[-1][2] == "1"  # all but the newest token, which the model has yet to read
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    facts = kept.works("sessions", "show", "s", "--memory", "--json", "--model", model).json
    assert facts["memory"]["position"] == facts["position"]
    assert len(facts["memory"]["slots"]) == sum(int(words[4]) for words in slots)


def test_looking_after_a_session(kept: CommandLine) -> None:
    for _ in range(20):
        kept.works("feed", "-", "--session", "s", stdin=b"Call me Ishmael. Some years ago.\n" * 3)
    before = kept.works("sessions", "show", "s", "--json").json
    seqs = [row["snapshot"] for row in before["snapshots"]]
    assert all(row["kept"] for row in before["snapshots"])
    pinned = kept.works("sessions", "pin", "s", "start", "--snapshot", 2, "--json").json
    assert pinned["position"] == before["snapshots"][2]["position"]
    told = kept.works("sessions", "gc", "s", "--last", 2, "--dry-run", "--json").json
    done = kept.works("sessions", "gc", "s", "--last", 2, "--json").json
    assert told == {**done, "dry_run": True} and done["released"] > 0
    after = kept.works("sessions", "show", "s", "--json").json
    assert after["pins"] == {"start": pinned["position"]} and after["bytes"] < before["bytes"]
    whole = [row["snapshot"] for row in after["snapshots"] if row["kept"]]
    assert {2, *seqs[-2:]} <= set(whole) and len(whole) < len(seqs)
    text = kept.works("sessions", "show", "s").out
    assert "pins: start at token" in text and text.count("tokens only") == len(seqs) - len(whole)
    # What was let go is reached by reading its tokens again.
    gone = next(row for row in after["snapshots"] if not row["kept"] and row["snapshot"] > 2)
    back = kept.works("sessions", "rewind", "s", "--snapshot", gone["snapshot"], "--json").json
    assert back["position"] == gone["position"]
    assert "are as they were written" in kept.works("sessions", "verify", "s").out
    assert kept.works("sessions", "unpin", "s", "start").out == "s: start is no pin any more\n"
    assert kept("sessions", "unpin", "s", "start").status == 1
    kept.works("sessions", "pin", "s", "again")
    unpinned = kept.works("sessions", "unpin", "s", "again", "--json").json
    assert unpinned == {"name": "s", "unpinned": "again"}
    refused = kept("sessions", "gc", "s", "--thin")
    assert refused.status == 1 and "--last" in refused.err


def test_recovering_a_damaged_session(kept: CommandLine) -> None:
    kept.works("feed", "text.txt", "--session", "s")
    assert "s is sound; it is at token" in kept.works("sessions", "recover", "s").out
    newest = kept.works("sessions", "show", "s", "--json").json["snapshots"][-1]
    commit = next(Path("sessions/s.zarr/commits").glob(f"{newest['position']:012d}-*"))
    data = bytearray(commit.read_bytes())
    chunk = next(name for name in members(bytes(data)) if name.startswith("memory/c."))
    data[where(bytes(data), chunk)] ^= 1
    commit.write_bytes(data)
    for command in (["verify", "s"], ["rewind", "s", "--tokens", 3]):
        damaged = kept("sessions", *command)
        assert damaged.status == 1 and f"{commit}: {chunk}" in damaged.err
    recovered = kept.works("sessions", "recover", "s")
    assert f"lost: {commit.resolve()}" in recovered.err.replace("\n", "")
    assert "s is back at token" in recovered.out
    kept.works("feed", "-", "--session", "s", stdin=b"And so on.\n")


def test_a_session_travels(kept: CommandLine) -> None:
    shown = kept.works("sessions", "show", "s", "--json").json
    kept.works("sessions", "export", "s", "s.zip")
    assert "exists already" in kept("sessions", "export", "s", "s.zip").err
    at = shown["position"]
    arrived = kept.works("sessions", "import", "s.zip", "t", "--store", "far", "--json").json
    assert arrived == {"name": "t", "branches": {"main": at, "side": at}}
    assert kept.works("sessions", "copy", "s", "u").out == (
        f"u: main at token {at}, side at token {at}\n"
    )
    kept.works("sessions", "copy", "t", "v", "--store", "far", "--to", "further")
    for name, store in (("t", "far"), ("u", "sessions"), ("v", "further")):
        found = kept.works("sessions", "show", name, "--store", store, "--json").json
        assert found["snapshots"] == shown["snapshots"]
        kept.works("feed", "text.txt", "--session", name, "--store", store)
    assert kept.works("sessions", "show", "s", "--json").json == shown
    kept.works("sessions", "rename", "u", "w")
    assert kept.works("sessions", "show", "w", "--json").json["position"] > at
    assert "no session 'u'" in kept("sessions", "show", "u").err
    kept.works("sessions", "rename", "w", "u")
    for arguments, message in (
        (["import", "s.zip", "u"], "exists already"),
        (["rename", "s", "u"], "exists already"),
        (["rename", "s@side", "w"], "is a branch"),
        (["copy", "s@side", "w"], "is a branch"),
        (["import", "text.txt", "w"], "no archive of a session"),
        (["copy", "nobody", "w"], "no session 'nobody'"),
    ):
        refused = kept("sessions", *arguments)
        assert refused.status == 1 and message in refused.err
    assert not Path("sessions/w.zarr").exists()


def test_delete_asks(kept: CommandLine) -> None:
    before = left()
    for answer in (b"n\n", b"\n", b"", b"yess\n", None):
        refused = kept("sessions", "delete", "s", stdin=answer)
        assert refused.status == 1 and refused.out == ""
        assert re.fullmatch(r"delete s \(.*\) for good\? \[y/N\] nothing is deleted\n", refused.err)
        assert left() == before
    assert kept.works("sessions", "delete", "s", stdin=b"y\n").out == "s is deleted\n"
    assert not Path("sessions/s.zarr").exists()
    kept.works("feed", "text.txt", "--session", "t")
    deleted = kept.works("sessions", "delete", "t", "--yes", "--json")
    assert deleted.err == "" and deleted.json == {"name": "t", "deleted": True}
    assert list(Path("sessions").iterdir()) == []


def test_damaged_sessions_do_not_hide_others(kept: CommandLine) -> None:
    shutil.copytree("sessions/s.zarr", "sessions/broken.zarr")
    Path("sessions/broken.zarr/session.json").write_text("{")
    shown = kept("sessions", "list")
    assert shown.status == 1 and re.search(r"(?m)^s@side", shown.out)
    assert shown.err.startswith("error: session 'broken': ") and shown.err.count("\n") == 1
    found = kept("sessions", "list", "--json")
    assert found.status == 1 and list(found.json["unreadable"]) == ["broken"]
    assert len(found.json["sessions"]) == 2


def test_a_session_that_was_never_saved_is_listed(kept: CommandLine) -> None:
    fingerprints = dict(DirectoryStore.open("sessions/s.zarr").fingerprints)
    DirectoryStore.create("sessions/early.zarr", fingerprints=fingerprints)  # killed right away
    rows = kept.works("sessions", "list", "--json").json["sessions"]
    assert rows[0]["name"] == "early" and rows[0]["position"] == 0 and rows[0]["saved"] is None
    assert re.search(r"(?m)^early +0 .* never$", kept.works("sessions", "list").out)
    refuses(kept, "session 'early' has nothing saved", "sessions", "show", "early")
    refuses(kept, "session 'early' has nothing saved", "generate", "--session", "early")
    kept.works("feed", "text.txt", "--session", "early")
    kept.works("feed", "text.txt", "--session", "other")
    assert log(Path("sessions/early.zarr")) == log(Path("sessions/other.zarr"))


COMMANDS = (
    *("feed", "generate", "score", "train", "eval", "sessions", "sessions list", "sessions show"),
    *("sessions fork", "sessions rewind", "sessions delete"),
)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_help_fits(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    top = cli.works("--help").out
    for command in COMMANDS:
        text = cli.works(*command.split(), "--help").out
        assert command.split()[0] in top
        assert not re.search(r"--[\w-]*…", text)  # no option is cut off
        assert all(len(line) <= 80 for line in text.splitlines())
    recipe = " ".join(cli.works("train", "-h").out.split())
    assert "A TOML file: [data], [model], [train]." in recipe
    assert cli.works("--version").out == f"streamlm {version('streamlm')}\n"


# -- what is refused --------------------------------------------------------------------------


BAD_FILES = {
    "nope[1].txt": r"no file 'nope\[1\]\.txt'",
    "folder": "folder is a directory",
    "empty.txt": "empty.txt is empty",
    "binary.txt": "binary.txt looks binary: NUL at byte 20,004",
    "random.bin": "random.bin is no UTF-8 text: invalid start byte at byte 0",
    "latin.txt": "latin.txt is no UTF-8 text: invalid continuation byte at byte 20,003",
    "cut.txt": "cut.txt is no UTF-8 text: unexpected end of data at byte 4",
    "packed.txt.xz": "packed.txt.xz is no UTF-8 text",
    "socket": "socket: No such device",
    "locked.txt": "locked.txt: Permission denied",
}


@pytest.fixture
def bad_files(kept: CommandLine) -> Iterator[CommandLine]:
    Path("folder").mkdir()
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"text " * 4000 + b"see \0 there")
    Path("random.bin").write_bytes(bytes(reversed(range(1, 256))))
    Path("latin.txt").write_bytes(b"text " * 4000 + b"caf\xe9 noir")
    Path("cut.txt").write_bytes(b"caf" + b" \xe9\xa1")
    with lzma.open("packed.txt.xz", "wb") as file:
        file.write(b"text")
    Path("locked.txt").write_text("text")
    Path("locked.txt").chmod(0)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield kept


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_text(bad_files: CommandLine, name: str) -> None:
    if name == "locked.txt" and os.getuid() == 0:
        pytest.skip("root may read everything")
    for command in ("feed --session new", "feed --session s", "score", "score --session s"):
        for given in ([name], ["text.txt", name]):
            if given[1:] == ["empty.txt"]:
                continue  # nothing wrong with one empty file among others
            refuses(bad_files, BAD_FILES[name], *command.split(), *given)


def test_standard_input_that_is_no_text(kept: CommandLine) -> None:
    for command in ("feed --session new", "feed --session s", "score"):
        words = command.split()
        refuses(kept, "nothing to (read|score): .* is empty", *words, "-")
        refuses(kept, "invalid UTF-8: byte 0xFF", *words, "-", stdin=b"text \xff text")
        refuses(kept, r"\(-\) given twice", *words, "-", "text.txt", "-")
        refuses(kept, r"\(-\) is closed", *words, "-", stdin=None)


def test_what_was_read_before_bad_text_is_kept(
    kept: CommandLine, small_blocks: int, prose: Callable[..., str]
) -> None:
    good = prose(400).encode()[: 6 * small_blocks] + b" \xff"
    failed = kept("feed", "-", "--session", "new", stdin=good)
    position = DirectoryStore.open("sessions/new.zarr").head("main").position  # type: ignore[union-attr]
    assert failed.status == 1 and failed.out == "" and position > 100
    assert failed.err.endswith(f"; what was read until token {position:,} is saved\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate --session nope", "no session 'nope' in sessions; there are: s$"),
        ("score text.txt --session nope", "no session 'nope'"),
        ("sessions show nope", "no session 'nope'"),
        ("sessions fork nope b", "no session 'nope'"),
        ("sessions rewind nope --tokens 0", "no session 'nope'"),
        ("sessions delete nope --yes", "no session 'nope'"),
        ("feed text.txt --session new@side", "no session 'new'"),
        ("sessions show s --store elsewhere", "no session 's' in elsewhere; there are: none yet$"),
        ("feed text.txt --session s@nope", "'s' has no branch 'nope'; it has main, side; "),
        ("generate --session s@nope", "no branch 'nope'"),
        ("score text.txt --session s@nope", "no branch 'nope'"),
        ("sessions show s@nope", "no branch 'nope'"),
        ("sessions fork s@nope b", "no branch 'nope'"),
        ("sessions rewind s@nope --tokens 0", "no branch 'nope'"),
        ("sessions fork s side", "branch 'side' exists already; allowed: a new name"),
        ("sessions fork s main", "branch 'main' exists already"),
        ("sessions delete s@side --yes", "'s@side' is a branch; allowed: a session"),
        ("sessions rewind s", "allowed: one of --tokens, --snapshot and --time"),
        (
            "sessions rewind s --tokens 1 --snapshot 1",
            "allowed: one of --tokens, --snapshot and --time",
        ),
        ("sessions rewind s --tokens 99999", "tokens = 99999; allowed: 0 to "),
        ("sessions rewind s --tokens -1", "tokens = -1; allowed: 0 to "),
        ("sessions rewind s --snapshot 99", "snapshot = 99; allowed: 0 to 1"),
        ("generate --session s --temperature -1", "temperature = -1.0; allowed: 0 .* to 100"),
        ("generate --session s --temperature 1e9", "temperature = 1000000000.0; allowed"),
        ("generate --session s --temperature nan", "temperature = nan; allowed"),
        ("generate --session s --top-k -1", r"top_k = -1; allowed: .*0 \(off\) or more"),
        ("generate --session s --top-p 0", "top_p = 0.0; allowed: above 0, at most 1"),
        ("generate --session s --top-p 1.5", "top_p = 1.5; allowed"),
        ("generate --session s --min-p 2", r"min_p = 2.0; allowed: 0 \(off\) to 1"),
        ("generate --session s --min-p nan", "min_p = nan; allowed"),
        ("generate --session s --repetition-penalty 0", "repetition_penalty = 0.0; allowed: above"),
        ("generate --session s --repetition-penalty inf", "repetition_penalty = inf; allowed"),
        ("generate --session s --max-tokens -1", "max_tokens = -1; allowed: 0 or more"),
        ("generate --session s --seed -1", "seed = -1; allowed: 0 or more"),
        ("generate --session s --stop=", "stop = .*; allowed: strings that are not empty"),
        ("feed text.txt --session new --device tpu", "device 'tpu'; allowed: auto, cpu, cuda"),
        ("feed text.txt --session new --model nope", "no checkpoint at 'nope'; allowed: "),
        ("eval nope --data text.txt", "no checkpoint at 'nope'; allowed: "),
        ("eval MODEL --data nope.txt", r"no file 'nope.txt', and no split; splits: valid, test"),
        ("eval MODEL --data sessions", "sessions is a directory; allowed: files, or valid"),
        ("eval MODEL --data valid --data-dir x", "'valid' is not at x/books/valid.txt.xz"),
        ("eval MODEL --data text.txt --batch-size 0", "--batch-size 0; allowed: at least 1"),
        ("eval MODEL --data text.txt --max-tokens -5", "--max-tokens -5; allowed: at least 1"),
    ],
)
def test_what_commands_refuse(kept: CommandLine, command: str, message: str) -> None:
    words = [str(kept.model) if word == "MODEL" else word for word in command.split()]
    refuses(kept, message, *words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "Usage: "),
        ("nope", "No such command 'nope'"),
        ("feed --session new", "Missing argument 'FILE'"),
        ("feed text.txt", "Missing option '--session'"),
        ("feed text.txt --session new --errors ignore", "'ignore' is not one of 'strict', 'repl"),
        ("feed text.txt --session new --store text.txt", "'--store': .*text.txt' is a file"),
        ("sessions list --store text.txt", "'--store': .*text.txt' is a file"),
        ("generate --top-k 2.5", "Invalid value for '--top-k'"),
        ("generate --temperature warm", "Invalid value for '--temperature'"),
        ("generate --seed x", "Invalid value for '--seed'"),
        ("generate --beams 4", "No such option: --beams"),
        ("sessions rewind s --tokens ten", "Invalid value for '--tokens'"),
        ("sessions fork s", "Missing argument 'BRANCH'"),
        ("train", "Missing option '--recipe'"),
        ("train --recipe sessions", "'--recipe': .*sessions' is a directory"),
        ("train --recipe text.txt --out text.txt", "'--out': .*text.txt' is a file"),
        ("eval MODEL", "Missing option '--data'"),
    ],
)
def test_how_commands_are_written(kept: CommandLine, command: str, message: str) -> None:
    before = left()
    result = kept(*command.split())
    assert result.status == 2
    assert re.search(message, result.out + result.err), result
    assert "Traceback" not in result.err and left() == before


NAMES = ("", "../x", "x/y", "/x", ".x", "-x", "x y", "x\n", "naïve", "x@../y", "x@y@z", "x" * 101)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(kept: CommandLine, name: str) -> None:
    above = set(Path("..").iterdir())
    message = "allowed: NAME or NAME@BRANCH, each of at most 100 letters, digits"
    refuses(kept, message, "feed", "text.txt", f"--session={name}")
    for command in (["show"], ["delete", "--yes"], ["rewind", "--tokens", "0"]):
        words = ["sessions", *command, "--", name]
        if command[0] == "rewind":
            words = ["sessions", *command, "--model", str(kept.model), "--", name]
        if command[0] == "delete" and "@" in name:
            refuses(kept, "is a branch", *words)
        else:
            refuses(kept, message, *words)
    if "@" not in name:
        refuses(kept, message, "sessions", "fork", "--", "s", name or "@")
    assert set(Path("..").iterdir()) == above


def test_other_weights_than_the_sessions(
    kept: CommandLine, tiny_folder: Callable[..., Path], prose: Callable[..., str]
) -> None:
    tokenizer = Tokenizer(train([prose(500)], Path("t.model"), vocab_size=400))
    checkpoint = streamlm.load(kept.model, device="cpu")
    save_checkpoint("other-tokenizer", checkpoint.model, tokenizer)
    for model, differing in (
        (tiny_folder(seed=2), ["weights"]),
        (tiny_folder(memory_len=32), ["architecture"]),
        ("other-tokenizer", ["tokenizer"]),
    ):
        for command in (
            "feed text.txt --session s",
            "generate --session s",
            "generate --session s --no-keep",
            "score text.txt --session s@side",
            "sessions rewind s --tokens 1",
        ):
            refuses(kept, "written with another model", *command.split(), "--model", model)
        error = kept("generate", "--session", "s", "--model", model).err
        found = re.findall(r"(\w+) [0-9a-f]{12} there and [0-9a-f]{12} here", error)
        assert found == differing
        assert f"--model {model}" in error
        assert "allow_mismatch" not in error and not re.search(r"[0-9a-f]{13}", error)


def test_checkpoints_that_are_none(kept: CommandLine) -> None:
    def changed(name: str, data: bytes | None) -> None:
        shutil.rmtree("changed", ignore_errors=True)
        shutil.copytree(kept.model, "changed")
        Path("changed", name).unlink()
        if data is not None:
            Path("changed", name).write_bytes(data)

    config = json.loads((kept.model / "config.json").read_text())
    for name, data, message in (
        ("config.json", None, "changed is no checkpoint: config.json is missing"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", json.dumps(config | {"d_ff": 32}).encode(), "do not agree"),
        ("config.json", json.dumps(config | {"heads": 3}).encode(), "has no heads; it knows"),
        ("model.safetensors", b"x" * 100, "model.safetensors is damaged"),
        ("tokenizer.model", b"x" * 100, "no SentencePiece model"),
    ):
        changed(name, data)
        refuses(kept, message, "feed", "text.txt", "--session", "new", "--model", "changed")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"steps": "steps = 0"}, "steps = 0; allowed: an integer of at least 1"),
        ({"steps": 'steps = "many"'}, "steps = 'many'; allowed: a value of type int"),
        ({"steps": "stepz = 1"}, "TrainConfig has no stepz; it knows .*steps"),
        ({"d_model": "d_model = 15"}, "d_model = 15; allowed: an even number"),
        ({"d_model": "width = 16"}, "ModelConfig has no width; it knows .*d_model"),
        ({"train": 'train = "text.txt"'}, "train = 'text.txt'; allowed: a list"),
        ({"train": 'train = ["nope-*.txt"]'}, r"no data file matches 'nope-\*.txt'"),
        ({"train": 'train = ["bad.txt"]'}, "bad.txt is no UTF-8 text: invalid .* at byte 5"),
        ({"train": 'train = ["bad.xz"]'}, "bad.xz is damaged: "),
        ({"valid": 'valid = ["cut.xz"]'}, "cut.xz is damaged: "),
        ({"valid": 'valid = ["empty.txt"]'}, "no text in empty.txt"),
        ({"valid": ""}, r"allowed are \[data\] with tokenizer, train, valid or valid_share"),
        ({"tokenizer": 'tokenizer = "nope.model"'}, "nope.model"),
        ({"tokenizer": "tokenizer = "}, "recipe.toml is no TOML: .*line"),
    ],
)
def test_bad_recipes(kept: CommandLine, replaced: dict[str, str], message: str) -> None:
    bad_data()
    write_recipe(**replaced)
    refuses(kept, message, "train", "--recipe", "recipe.toml", "--out", "run")
    assert not Path("run").exists()


def test_runs_that_cannot_be(kept: CommandLine) -> None:
    write_recipe()
    recipe = ("train", "--recipe", "recipe.toml")
    refuses(kept, "nope.toml: No such file", "train", "--recipe", "nope.toml")
    refuses(kept, "nothing to resume in run: it has no last", *recipe, "--out", "run", "--resume")
    refuses(kept, "steps = -1; allowed: an integer of at least 1", *recipe, "--steps", "-1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad.txt", "bad.txt is no UTF-8 text: .* at byte 5"),
        ("bad.xz", "bad.xz is damaged: "),
        ("cut.xz", "cut.xz is damaged: "),
        ("empty.txt", "no text in empty.txt"),
    ],
)
def test_bad_data_to_evaluate(kept: CommandLine, name: str, message: str) -> None:
    bad_data()
    refuses(kept, message, "eval", kept.model, "--data", name)
    if name != "empty.txt":
        refuses(kept, message, "eval", kept.model, "--data", "text.txt", "--data", name)


def bad_data() -> None:
    Path("bad.txt").write_bytes(b"text \xff")
    Path("bad.xz").write_bytes(b"text")
    Path("cut.xz").write_bytes(lzma.compress(b"text " * 100)[:-20])
    Path("empty.txt").write_bytes(b"\f\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(kept: CommandLine) -> None:
    message = "CUDA is not usable here; allowed: auto, cpu"
    refuses(kept, message, "feed", "text.txt", "--session", "new", "--device", "cuda")


HOLD = """
import sys
from memory_store import DirectoryStore
with DirectoryStore.open("sessions/s.zarr").writer("main"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer(kept: CommandLine) -> None:
    command, pipe = [sys.executable, "-c", HOLD], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        for words in (
            "feed text.txt --session s",
            "generate --session s",
            "sessions rewind s --tokens 1",
            "sessions delete s --yes",
        ):
            refuses(kept, f"being written by process {holder.pid} ", *words.split())
        kept.works("generate", "--session", "s", "--no-keep", "--max-tokens", 2)
        kept.works("score", "text.txt", "--session", "s")
        kept.works("feed", "text.txt", "--session", "s@side")
    kept.works("feed", "text.txt", "--session", "s")


def test_a_full_disk(kept: CommandLine, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        feed = ("feed", "text.txt", "--session", "full", "--store", "disk")
        first = kept.works(*feed, "--json").json["position"]
        with open("disk/rest", "wb", buffering=0) as rest, pytest.raises(OSError, match="space"):
            while True:
                rest.write(bytes(4096))
        failed = kept(*feed)
        assert failed.status == 1 and failed.out == ""
        assert re.search(r"full.zarr: no space left .*the last commit is intact", failed.err)
        store = DirectoryStore.open("disk/full.zarr")
        assert store.verify().commits == 2  # the empty beginning, and the first reading
        assert kept.works("score", "text.txt", *feed[2:], "--json").json["position"] == first
        Path("disk/rest").unlink()
        kept.works(*feed)
        kept.works("feed", "text.txt", "--session", "twice")
        kept.works("feed", "text.txt", "--session", "twice")
        assert log(store.path) == log(Path("sessions/twice.zarr"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- interruptions ----------------------------------------------------------------------------


def log(path: Path) -> list[int]:
    """The token ids of a session, from its beginning to its head."""
    store = DirectoryStore.open(path)
    head = store.head("main")
    return [] if head is None else store.tokens(head, 0, head.position).tolist()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let the function `name` be called so many times; Ctrl-C comes with the next call."""
    module, _, attribute = name.rpartition(".")
    parent, _, owner = module.rpartition(".")
    target = sys.modules.get(module) or getattr(sys.modules[parent], owner)
    original, made = getattr(target, attribute), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(target, attribute, wrapped)


@pytest.mark.parametrize(
    ("command", "where", "message"),
    [
        ("score text.txt --session s", "streamlm.session.Session._read", "nothing is chang"),
        ("eval MODEL --data text.txt", "streamlm.evaluate.evaluate", "nothing is changed"),
        (
            "generate --session s --no-keep",
            "streamlm.text.TextStream.write_token",
            "nothing is kept",
        ),
        ("feed text.txt --session new", "streamlm.cli.open_named", "nothing was read"),
        ("feed text.txt --session new", "streamlm.session.Session._read", "nothing was read"),
        ("train --recipe recipe.toml", "streamlm.train.Trainer._optimise", "nothing was saved yet"),
    ],
)
def test_interrupted_before_anything_was_kept(
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


def test_interrupted_generate_keeps_what_was_written(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--session", "s", "--seed", 5, "--max-tokens", 9)
    whole = kept.works("generate", *options, "--no-keep").out
    start = len(log(Path("sessions/s.zarr")))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.text.TextStream.write_token", 4)
        result = kept("generate", *options)
    assert result.status == 130 and result.err == "interrupted; session s has what was written\n"
    assert result.out.endswith("\n") and whole.startswith(result.out[:-1])
    assert start + 4 <= len(log(Path("sessions/s.zarr"))) < start + 9


@pytest.fixture(scope="module")
def slow_model(tiny_folder: Callable[..., Path]) -> Path:
    """Takes some seconds to read the sample book, with three saves on the way."""
    return tiny_folder(segment_len=128, memory_len=128)


def start(*arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        environment.pop(name, None)
    environment.pop("PYTHONUNBUFFERED", None)  # it hides what is still to be written at the end
    environment["TERM"] = "xterm-256color"
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment,
        # A job in the background of a script inherits that Ctrl-C is ignored; a terminal's is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def position(path: Path) -> int:
    """How far a session was saved; 0 before it is begun."""
    if not (path / "refs" / "main").exists():
        return 0
    head = DirectoryStore.open(path).head("main")
    return head.position if head else 0


def wait_until(process: "subprocess.Popen[bytes]", done: Callable[[], bool]) -> None:
    while not done():
        assert process.poll() is None, "the process ended before it could be interrupted"
        time.sleep(0.02)


@pytest.mark.slow
def test_feed_goes_on_after_signals(cli: CommandLine, slow_model: Path) -> None:
    """In a terminal: a bar, then Ctrl-C. Next kill -9. The third time it reads to the end."""
    book, path = BOOKS / "beyond-the-city.txt", Path("sessions/a.zarr")
    feed = ("feed", book, "--session", "a", "--model", slow_model)
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
    goes_on = "is saved; the same command goes on there"
    assert f"interrupted; what was read until token {first:,} {goes_on}" in text

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
    # Nothing is missing and nothing was read twice, but for the word held back at the end.
    whole = streamlm.load(slow_model, device="cpu").tokenizer.encode(book.read_text("utf-8"))
    found = log(path)
    assert found == whole.tolist()[: len(found)] and len(found) >= len(whole) - 8


def read_to_end(screen: int) -> bytes:
    """What is left to read of a terminal whose processes end."""
    found = b""
    while True:
        try:
            block = os.read(screen, 1 << 16)
        except OSError:  # how Linux says that nobody has the terminal open any more
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


def test_the_reader_of_the_output_leaves(cli: CommandLine, model: Path) -> None:
    """As in `streamlm generate | head -c 1`, and with --json, which is written in one go."""
    options = ("--model", model, "--max-tokens", 5000)
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


def test_commands_that_are_imported_later_say_what_they_say_of_themselves() -> None:
    from streamlm.cli import SUITE
    from streamlm.cli_later import LATER, Later
    from streamlm.tasks.suite import NAMES

    for name, (_, told) in LATER.items():
        real = Later(name).real
        assert real.help.split("\n\n")[0].strip() == told
    assert SUITE.split(", ") == list(NAMES)
